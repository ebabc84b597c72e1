"""``labels.csv``: what a person says of images, as ``osr review`` gives it or written by hand."""

from __future__ import annotations

import csv
import os
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from osr_lightning.atomic_write import as_text
from osr_lightning.data_spec import UNKNOWN, composed
from osr_lightning.errors import UserError
from osr_lightning.recogniser.read_table import is_rounded, rows_of, text_of
from osr_lightning.recogniser.rows import find_file, name_of_cell

IGNORED = ("", "ignore", UNKNOWN)  # labels of images that nothing is learned from, in any case


class Labels(NamedTuple):
    """What was said.

    Attributes:
        files: label -> its files, in the order of the rows.
        ignored: how many rows say that nothing is to be learned of their image.
    """

    files: dict[str, list[Path]]
    ignored: int


def read_labels(path: str | PathLike[str], threshold: float | None = None) -> Labels:
    """Read a table with the columns ``file`` and ``label``, and maybe ``threshold``.

    A file is looked for from the working folder, and then from the table's.

    Args:
        path: of the table; a spreadsheet may have written it.
        threshold: of the checkpoint that the rows must be of, where they tell theirs.

    Raises:
        UserError: where it is no such table, a row is of another checkpoint, a file is gone, or one file has
            two labels.
    """
    if not os.fspath(path):
        raise UserError("an empty path names no labels; name a table of file and label")
    found: dict[str, list[Path]] = {}
    label_of: dict[Path, str] = {}
    gone: list[Path] = []
    ignored = 0
    try:
        with open(Path(path).expanduser(), "rb") as file, text_of(file) as lines:
            reader, decimal_comma = rows_of(lines)
            header = tuple(reader.fieldnames or ())
            if missing := [name for name in ("file", "label") if name not in header]:
                raise UserError(
                    f"{path}: its first line has no column {', '.join(missing)}; a row is as cat.png,cat "
                    "below file,label"
                )
            for row in reader:
                if not any(row.values()):
                    continue  # as spreadsheets write below a table
                where = f"{path}, line {reader.line_num}"
                _refuse_other(row.get("threshold"), threshold, where, decimal_comma)
                (label,) = composed([name_of_cell((row["label"] or "").strip())])
                if any("\udc80" <= letter <= "\udcff" for letter in label):  # bytes that are no UTF-8
                    raise UserError(f"{where}: the label is not in UTF-8; save the table as CSV UTF-8")
                if label.casefold() in IGNORED:
                    ignored += 1
                    continue
                if not row["file"]:
                    raise UserError(f"{where}: the row names no file")
                place = find_file(row["file"], Path(path).expanduser())
                if place is None:
                    gone.append(Path(row["file"]))
                    continue
                if label_of.setdefault(place, label) != label:
                    raise UserError(
                        f"{where}: {as_text(place)} is called {label!r} here and {label_of[place]!r} before; "
                        "leave one"
                    )
                own = found.setdefault(label, [])
                if place not in own:
                    own.append(place)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; osr review gives one, or write it by hand") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give a table of file and label"
        ) from error
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"{path} is damaged ({error}); give a table of file and label") from error
    if gone:
        named = ", ".join(as_text(one) for one in gone[:3])
        raise UserError(
            f"{len(gone):,} of the files in {path} are gone ({named}{', …' * (len(gone) > 3)}); put them "
            "back, run from the folder that their paths begin in, or remove their rows"
        )
    return Labels(found, ignored)


def _refuse_other(cell: str | None, threshold: float | None, where: str, decimal_comma: bool) -> None:
    text = (cell or "").strip()
    if threshold is None or not text:
        return
    text = text.replace(",", ".") if decimal_comma else text
    try:
        same = is_rounded(text, threshold)
    except ArithmeticError as error:  # of a Decimal that is none
        raise UserError(f"{where}: the threshold {text!r} is no number; leave the cell empty") from error
    if not same:
        raise UserError(
            f"{where}: the threshold was {text}, that of the checkpoint is {threshold!r}; the labels are of "
            "another checkpoint: give that one, or remove the column"
        )
