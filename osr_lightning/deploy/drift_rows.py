"""The scores in ``predictions.csv`` files that ``osr predict`` or ``osr test`` wrote."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from osr_lightning.answers import COLUMNS
from osr_lightning.errors import UserError
from osr_lightning.scoring.sweep import Floats


class Scores(NamedTuple):
    """What the rows of all files hold.

    Attributes:
        values: ``(m,)`` float64, of the rows without an error, in order.
        errors: how many rows were left out, as their file could not be read.
    """

    values: Floats
    errors: int


def read(paths: Sequence[str], score: str, threshold: float) -> Scores:
    """Read predictions that were decided by ``score`` and ``threshold``.

    Raises:
        UserError: where a file is missing, damaged, no such table, or was decided otherwise; or where no row
            has a score.
    """
    values, errors = array("d"), 0
    for path in paths:
        for value in _scores(path, score, threshold):
            if value is None:
                errors += 1
            else:
                values.append(value)
    if not values:
        beside = f", only {errors:,} rows with an error" if errors else ""
        raise UserError(f"there are no predictions in {', '.join(paths)}{beside}: predict some images first")
    return Scores(np.frombuffer(values), errors)


def _scores(path: str, score: str, threshold: float) -> Iterator[float | None]:
    """The score of each row; None for one with an error."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file, strict=True)
            header = tuple(reader.fieldnames or ())
            if header[: len(COLUMNS)] != COLUMNS:
                columns = ", ".join(COLUMNS)
                raise UserError(f"{path}: its first columns are not {columns}; give what osr predict wrote")
            if score in header:
                raise UserError(
                    f"{path}: another score than {score} called its images unknown; name it with --score, or "
                    f"predict again with {score}"
                )
            for row in reader:
                if row["error"]:
                    yield None
                    continue
                where = f"{path}, line {reader.line_num}"
                found = _number(row["threshold"], where)
                if not math.isclose(found, threshold, rel_tol=1e-9):
                    raise UserError(
                        f"{where}: the threshold was {found:g}, that of the checkpoint for {score} is "
                        f"{threshold:g}; predict again with this checkpoint and without --threshold"
                    )
                yield _number(row["score"], where)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; write it with osr predict --output {path}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file of osr predict") from error
    except csv.Error as error:
        raise UserError(f"{path} is damaged ({error}); write it again with osr predict") from error


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {text!r} is no finite number; write the file again with osr predict")
    return value
