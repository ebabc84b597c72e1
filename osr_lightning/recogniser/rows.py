"""The rows of ``predictions.csv``, of a test as of files: what is in them, and where they go.

A few rows at a time go to CSV, JSON lines or Parquet, a file or standard output. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, TypeAlias

from osr_lightning.atomic_write import as_text, check_place, replacing
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.errors import UserError, one_line
from osr_lightning.recogniser.prediction import Answering, Answers
from osr_lightning.scoring.p_values import p_values

Row: TypeAlias = Sequence[Any]
"""A cell for each column."""
Sink: TypeAlias = Callable[[Iterable[Row]], object]
"""Takes rows."""
COLUMNS = (
    *("index", "file", "source", "label", "prediction"),
    *("confidence", "score", "threshold", "error"),
)
P_VALUE = "p_value"
FORMATS = (".csv", ".jsonl", ".parquet")
_TEXT = ("file", "source", "label", "prediction", "error")


def columns(score_names: Iterable[str], deciding: str) -> list[str]:
    """The names of all columns: ``COLUMNS``, the scores that do not decide, and ``P_VALUE`` as the last.

    Files of earlier versions have no ``P_VALUE``; all that they have keeps its place.
    """
    return [*COLUMNS, *(name for name in score_names if name != deciding), P_VALUE]


def answer_cells(answering: Answering, answers: Answers) -> Iterator[Row]:
    """What follows ``label`` in the rows of some images: names for numbers."""
    deciding = answering.threshold
    scores = {name: answers.scores[name] for name in answering.score_names}
    p_value = p_values(deciding.record, scores[deciding.score])
    rows = {"prediction": answers.prediction, "confidence": answers.confidence, P_VALUE: p_value}
    return cells(rows, scores, answering.spec.classes, deciding.score, deciding.value)


def cells(
    rows: Mapping[str, Any],
    scores: Mapping[str, Any],
    classes: Sequence[str],
    deciding: str,
    threshold: float,
) -> Iterator[Row]:
    """What follows ``label`` in the rows of ``N`` images.

    Args:
        rows: ``prediction`` in ``0 .. K``, ``confidence`` and ``p_value``, NaN where there is none; ``(N,)``
            each, arrays of numpy or tensors.
        scores: name -> ``(N,)``.
        classes: names of the ``K`` known ones.
        deciding: name of the score that decides.
        threshold: above it an image is unknown.
    """
    names = [*class_cells(classes), UNKNOWN]
    further = [values.tolist() for name, values in scores.items() if name != deciding]
    columns = (rows["prediction"], rows["confidence"], scores[deciding], rows[P_VALUE])
    for label, certainty, score, p, *others in zip(
        *(values.tolist() for values in columns), *further, strict=True
    ):
        yield names[label], certainty, score, threshold, "", *others, "" if math.isnan(p) else p


def error_cells(error: str, columns: Sequence[str]) -> Row:
    """What follows ``label`` in the row of an image that cannot be read, of all ``columns``."""
    return ("", "", "", "", error, *[""] * (len(columns) - len(COLUMNS)))


def write_rows(
    path: str | os.PathLike[str],
    rows: Mapping[str, Any],
    scores: Mapping[str, Any],
    *,
    classes: Sequence[str],
    deciding: str,
    threshold: float,
    sources: Sequence[str] = (),
    files: Sequence[str] = (),
    errors: str = "backslashreplace",
    follow: bool = False,
    through: Callable[[Sink], AbstractContextManager[Sink]] = contextlib.nullcontext,
) -> None:
    """Write the rows of ``N`` images, whose columns are arrays of numpy or tensors.

    Args:
        path: see `open_rows`.
        rows: ``row``, the index; ``source`` in ``sources``; ``label`` in ``0 .. K``, others are of no class;
            ``prediction`` in ``0 .. K``; ``confidence``; and ``p_value``, NaN where there is none; ``(N,)``
            each.
        scores: name -> ``(N,)``.
        classes: names of the ``K`` known ones.
        deciding: name of the score that decides.
        threshold: above it an image is unknown.
        sources: names of the image sets; none where they have none.
        files: by index, those that the images were read from; none where there are none.
        errors: see `open_rows`.
        follow: see `open_rows`.
        through: what the rows pass on their way to the file, which may change them.
    """
    names = [*class_cells(classes), UNKNOWN]
    answers = cells(rows, scores, classes, deciding, threshold)
    where = zip(*(rows[name].tolist() for name in ("row", "source", "label")), strict=True)
    with open_rows(path, columns(scores, deciding), errors, follow=follow) as sink, through(sink) as write:
        write(
            (
                index,
                files[index] if files else "",
                sources[source] if sources else "",
                names[label] if 0 <= label < len(names) else "",
                *answer,
            )
            for (index, source, label), answer in zip(where, answers, strict=True)
        )


def check_output(output: str) -> str:
    """Where to write rows, if that can be done, before any work is.

    Raises:
        UserError: for an unknown ending, a missing library or folder.
    """
    if output == "-":
        return output
    path = check_place("--output", output, FORMATS)
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(
                "--output .parquet needs the extra 'parquet': pip install 'osr_lightning[parquet]'"
            ) from error
    return str(path)


@contextlib.contextmanager
def open_rows(
    output: str | os.PathLike[str],
    columns: Sequence[str],
    errors: str = "backslashreplace",
    *,
    follow: bool = False,
) -> Iterator[Sink]:
    """A function that writes rows to ``output``; the file is complete, or left as it was, at the end.

    Args:
        output: a path ending in .csv, .jsonl or .parquet; ``-`` is CSV on standard output.
        columns: of every row, in order.
        errors: how to write what is no UTF-8, as Python calls it.
        follow: whether what a link leads to is replaced, as the user named it; see
            `osr_lightning.atomic_write.replacing`.
    """
    if output == "-":
        reconfigure = getattr(sys.stdout, "reconfigure", None)  # a test's stand-in may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace", newline="")
        yield _csv(sys.stdout, columns)
        sys.stdout.flush()
        return
    kind = Path(output).suffix.lower()
    with replacing(output, follow=follow) as target:
        if kind == ".parquet":
            with _parquet(target, columns) as sink:
                yield sink
        else:
            with open(target, "w", newline="", encoding="utf-8", errors=errors) as file:
                yield _csv(file, columns) if kind == ".csv" else _json_lines(file, columns)


def as_json(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """A row by the names of its columns; an empty cell has no number, which JSON calls null."""
    return {
        name: None if value == "" and name != "error" else value
        for name, value in zip(columns, row, strict=True)
    }


# what begins so, a spreadsheet may run; the last four are the full-width forms of the first four
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
# a spreadsheet for which ; or a tab is between the cells ignores the quotes of a CSV with commas, so that the
# rest of a text may be a cell, or a row, of its own
_AFTER = r"(?<=[;\t\r\n])"
_SIGN = r"(?='*[=+\-@\uff1d\uff0b\uff0d\uff20])"
_BEGIN = re.compile(rf"^(?='*[{re.escape(''.join(_FORMULA))}])|{_AFTER}{_SIGN}")
_UNGUARD = re.compile(rf"^'(?='*[{re.escape(''.join(_FORMULA))}])|{_AFTER}'{_SIGN}")
_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")  # as `as_text` writes what is no UTF-8
_GUARD = re.compile(rf"{_AFTER}'{_SIGN}")


def path_cell(path: str | os.PathLike[str]) -> str:
    """A path as text that any file can hold and that no spreadsheet takes for a formula."""
    return _path_text(as_text(path))


def name_cell(name: str) -> str:
    """A name, or any text, no part of which a spreadsheet takes for a formula: an apostrophe before each.

    Two names never become one: what is a formula behind apostrophes gets one more. A number stays itself.
    """
    return name if _NUMBER.fullmatch(name) else _BEGIN.sub("'", name)


def name_of_cell(cell: str) -> str:
    """The name whose `name_cell` this is; another text stays itself."""
    return _UNGUARD.sub("", cell)


def file_of_cell(cell: str) -> str:
    """The file whose cell this is, of a version that protects them or of an earlier one."""
    file = _GUARD.sub("", cell)
    return file[2:] if file.startswith("./") and file[2:].startswith(_FORMULA) else file


def find_file(cell: str, table: Path) -> Path | None:
    """Where the file of a cell is: seen from the working folder, or from the table's; None where it is gone.

    A name that is no UTF-8 has backslashes in its cell, see `path_cell`.

    Args:
        cell: that tells the file.
        table: the path of the table that it stands in.
    """
    file = file_of_cell(cell)
    raw = os.fsdecode(_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(file)))
    named = [Path(name).expanduser() for name in dict.fromkeys((file, raw))]
    return next((p for name in named for p in (name, table.parent / name) if p.is_file()), None)


def places_of_cells(names: Iterable[str]) -> dict[str, int]:
    """Cell -> place of its name among ``names``, of a version that protects them or of an earlier one."""
    given = list(names)
    written = given, map(name_cell, given), map(name_cell, class_cells(given))
    return {cell: place for cells in written for place, cell in enumerate(cells)}


def table_sink(file: IO[str], header: Sequence[str]) -> Sink:
    """What writes a CSV table's rows to a file: every text as `name_cell`, for all tables of this package."""
    # rows end in a line feed alone, for which csv's own option would leave a carriage return unquoted
    lines = SimpleNamespace(write=lambda row: file.write(row.removesuffix("\r\n") + "\n"))
    writer = csv.writer(lines)  # writes a float as its repr, which reads back exactly

    def write(rows: Iterable[Row]) -> None:
        for row in rows:
            writer.writerow([name_cell(value) if isinstance(value, str) else value for value in row])

    write([header])
    return write


def _path_text(text: str) -> str:
    return f"./{text}" if text.startswith(_FORMULA) else text


def class_cells(classes: Iterable[str]) -> list[str]:
    """Different names as different text that commands no terminal."""
    found: dict[str, None] = {}
    for name in classes:
        cell = one_line(name)
        while cell in found:
            cell += "'"
        found[cell] = None
    return list(found)


def _csv(file: IO[str], columns: Sequence[str]) -> Sink:
    sink = table_sink(file, columns)
    if "file" not in columns:
        return sink
    place = columns.index("file")

    def write(rows: Iterable[Row]) -> None:
        # stays the file's path
        sink([*row[:place], _path_text(row[place]), *row[place + 1 :]] for row in rows)

    return write


def _json_lines(file: IO[str], columns: Sequence[str]) -> Sink:
    def write(rows: Iterable[Row]) -> None:
        for row in rows:
            file.write(json.dumps(as_json(row, columns)) + "\n")

    return write


@contextlib.contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Sink]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def kind(name: str) -> Any:  # noqa: ANN401 - pyarrow is untyped
        return pa.int64() if name == "index" else pa.string() if name in _TEXT else pa.float64()

    schema = pa.schema([(name, kind(name)) for name in columns])

    def write(rows: Iterable[Row]) -> None:
        values = {
            name: [None if cell == "" and name not in _TEXT else cell for cell in cells]
            for name, cells in zip(columns, zip(*rows, strict=True), strict=True)
        }
        writer.write_table(pa.table(values, schema=schema))

    with pq.ParquetWriter(str(path), schema) as writer:
        yield write
