"""Predictions that were written earlier, read again: as `osr predict` wrote them, or a spreadsheet since."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from osr_lightning.errors import UserError
from osr_lightning.recogniser.read_table import is_rounded, rows_of, text_of
from osr_lightning.recogniser.rows import COLUMNS


class Answer(NamedTuple):
    """A row.

    Attributes:
        file: its cell, see `osr_lightning.recogniser.rows.file_of_cell`; empty for an image of a source.
        prediction: its cell: the name of a class, or ``unknown``.
        score: of the image; None where it could not be read.
    """

    file: str
    prediction: str
    score: float | None


def read_answers(path: str, score: str, threshold: float) -> Iterator[Answer]:
    """The rows of a table of predictions that were decided by ``score`` and ``threshold``.

    A spreadsheet may have put ``;`` or tabs between the cells, commas into numbers, a mark of its encoding in
    front, and rounded what it shows.

    Raises:
        UserError: where the file is missing, damaged, no such table, or was decided otherwise.
    """
    if not path:
        raise UserError("an empty path names no predictions; name a file of osr predict --output")
    try:
        with open(path, "rb") as file, text_of(file) as lines:
            reader, decimal_comma = rows_of(lines)
            header = tuple(reader.fieldnames or ())
            if missing := [name for name in COLUMNS if name not in header]:
                raise UserError(
                    f"{path}: its first line has no column {', '.join(missing)}; give a CSV of osr predict"
                )
            if score in header:
                raise UserError(
                    f"{path}: another score than {score} called its images unknown; name it with --score, or "
                    f"predict again with {score}"
                )
            for row in reader:
                named = str(row["file"] or ""), str(row["prediction"] or "")
                if row["error"]:
                    yield Answer(*named, None)
                    continue
                if not any(row.values()):
                    continue  # as spreadsheets write below a table
                where = f"{path}, line {reader.line_num}"
                if decimal_comma:
                    row |= {name: (row[name] or "").replace(",", ".") for name in ("threshold", "score")}
                found = _number(row, "threshold", where)
                if not is_rounded(str(row["threshold"]), threshold):
                    raise UserError(
                        f"{where}: the threshold was {found!r}, that of the checkpoint for {score} is "
                        f"{threshold!r}; predict again with this checkpoint and without --threshold or --fdr"
                    )
                yield Answer(*named, _number(row, "score", where))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; write it with osr predict --output {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of osr predict") from error
    except (csv.Error, UnicodeError) as error:
        raise UserError(f"{path} is damaged ({error}); write it again with osr predict") from error


def _number(row: Mapping[str, str | None], name: str, where: str) -> float:
    text = row[name]
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f"{where}: its {name}, {text!r}, is no finite number; write the file again with osr predict"
        )
    return value
