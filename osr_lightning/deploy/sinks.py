"""Where rows go: CSV, JSON lines or Parquet, a file or standard output, a few rows at a time."""

from __future__ import annotations

import contextlib
import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias

from osr_lightning.errors import UserError
from osr_lightning.writing import replacing

Row: TypeAlias = dict[str, Any]
Sink: TypeAlias = Callable[[Sequence[Row]], None]
FORMATS = (".csv", ".jsonl", ".parquet")


def check(output: str) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        UserError: for an unknown ending, a missing library or folder.
    """
    if output == "-":
        return
    path = Path(output)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--output {output}: the ending says the format, one of {', '.join(FORMATS)}, or -")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UserError(
                "--output .parquet needs the extra 'parquet': pip install 'osr_lightning[parquet]'"
            ) from error
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {path.absolute().parent}, or it is one")


@contextlib.contextmanager
def opened(output: str, columns: Sequence[str]) -> Iterator[Sink]:
    """A function that writes rows to ``output``; the file is complete, or left as it was, at the end.

    Args:
        output: a path ending in .csv, .jsonl or .parquet; ``-`` is CSV on standard output.
        columns: of every row, in order.

    Raises:
        UserError: see `check`.
    """
    check(output)
    if output == "-":
        reconfigure = getattr(sys.stdout, "reconfigure", None)  # a test's stand-in may lack it
        if reconfigure is not None:
            reconfigure(errors="backslashreplace", newline="")
        yield _csv(sys.stdout, columns)
        sys.stdout.flush()
        return
    kind = Path(output).suffix.lower()
    with replacing(output) as target:
        if kind == ".parquet":
            with _parquet(target, columns) as sink:
                yield sink
        else:
            with open(target, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                yield _csv(file, columns) if kind == ".csv" else _json_lines(file, columns)


def _csv(file: IO[str], columns: Sequence[str]) -> Sink:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    return writer.writerows


def _json_lines(file: IO[str], columns: Sequence[str]) -> Sink:
    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            file.write(json.dumps(as_json(row, columns)) + "\n")

    return write


def as_json(row: Row, columns: Sequence[str]) -> Row:
    """A row's values in the order of the columns; an empty cell has no number, which JSON calls null."""
    return {name: None if row[name] == "" and name != "error" else row[name] for name in columns}


@contextlib.contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Sink]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ("file", "source", "label", "prediction", "error")
    schema = pa.schema(
        [
            (name, pa.int64() if name == "index" else pa.string() if name in text else pa.float64())
            for name in columns
        ]
    )

    def write(rows: Sequence[Row]) -> None:
        values = {
            name: [row[name] if name in text or row[name] != "" else None for row in rows] for name in columns
        }
        writer.write_table(pa.table(values, schema=schema))

    with pq.ParquetWriter(str(path), schema) as writer:
        yield write
