"""Tables as this package writes them, or as a spreadsheet makes them of that."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections.abc import Iterator
from decimal import Decimal
from itertools import chain
from typing import IO

_DIGITS = 3  # of a rounded number that can be told from another


def text_of(file: IO[bytes]) -> io.TextIOWrapper:
    """The text of a file, which may be a pipe: UTF-8, or what spreadsheets call Unicode text, UTF-16."""
    begin = file.peek(2)[:2]  # type: ignore[attr-defined]
    encoding = "utf-16" if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    errors = "strict" if encoding == "utf-16" else "surrogateescape"
    return io.TextIOWrapper(file, encoding, errors, newline="")


def rows_of(lines: Iterator[str]) -> tuple[csv.DictReader[str], bool]:
    """The rows, whatever of ``,``, ``;`` and tab is between the cells; and whether numbers have a comma."""
    first = next(lines, "")
    if first.startswith("sep="):  # a word of Excel's to itself
        first = next(lines, "")
    between = max(",;\t", key=first.count)
    return csv.DictReader(chain([first], lines), strict=True, delimiter=between), between != ","


def is_rounded(text: str, number: float) -> bool:
    """Whether a number as it is written is that one, rounded to its digits as a spreadsheet does."""
    found = Decimal(text)
    if math.isclose(found, number, rel_tol=1e-9):
        return True
    unit = Decimal(1).scaleb(int(found.as_tuple().exponent))
    return len(found.as_tuple().digits) >= _DIGITS and abs(found - Decimal(number)) <= unit / 2
