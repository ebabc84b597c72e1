"""A row for every image file, whatever is in it: what ``osr predict`` does with the files it is given."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from osr_lightning.atomic_write import as_text
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.errors import UserError
from osr_lightning.images.ahead import ahead
from osr_lightning.images.find import find
from osr_lightning.recogniser.prediction import AT_ONCE, Answering
from osr_lightning.recogniser.rows import COLUMNS, Row, Sink, answer_cells, columns, error_cells, path_cell
from osr_lightning.scoring.calibration import Calibration
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.p_values import (
    describe_rate,
    false_discovery_threshold,
    p_values,
    places,
)

Pixels: TypeAlias = NDArray[np.uint8]
_PREDICTION, _SCORE, _THRESHOLD, _ERROR = map(COLUMNS.index, ("prediction", "score", "threshold", "error"))
_AT_ONCE = 1024  # rows that are decided together
_NAMED = 3  # of the files that are skipped
_AHEAD = 4  # tasks per worker that are read before they are needed


class Image(NamedTuple):
    """A file to classify: its path, and the argument that it was found by."""

    path: Path
    source: str


@dataclass
class Counts:
    """What became of the files: the summary's numbers, the first that were skipped, and what else decided."""

    predicted: int = 0
    unknown: int = 0
    unreadable: int = 0
    skipped: int = 0
    named: list[str] = field(default_factory=list)
    rule: str = ""

    def skip(self, path: Path) -> None:
        """Count a file that is no image."""
        self.skipped += 1
        if len(self.named) < _NAMED:
            self.named.append(as_text(path))

    @property
    def others(self) -> str:
        """The files that were skipped, as far as they are named: ``a.txt, b.txt, …``."""
        return ", ".join(self.named) + ", …" * (self.skipped > len(self.named))

    def __str__(self) -> str:
        """``23 predicted (4 unknown), 2 unreadable, 1 skipped (not images: notes.txt)``."""
        text = f"{self.predicted:,} predicted ({self.unknown:,} unknown)"
        if self.unreadable:
            text += f", {self.unreadable:,} unreadable"
        text += f", {self.skipped:,} skipped (not images: {self.others})" if self.skipped else ""
        return text + self.rule


def images(paths: Sequence[str], counts: Counts | None = None) -> Iterator[Image]:
    """The images that files, folders (with all below them) and globs stand for, in order.

    Args:
        paths: as a user names them.
        counts: where to count what is passed over.

    Raises:
        UserError: where a glob matches nothing.
    """
    for named in paths:
        for found in find(named):
            if found.image:
                yield Image(found.path, named)
            elif counts is not None:
                counts.skip(found.path)


def read(answering: Answering, some: Sequence[Image]) -> list[Pixels | str]:
    """Read files; ``(channels, size, size)`` each, or what is wrong with it."""
    found: list[Pixels | str] = []
    for image in some:
        try:
            found.append(answering.prepare(image.path))
        except UserError as error:
            found.append(str(error))
    return found


def classify(
    recogniser: Answering,
    found: Iterable[Image],
    sink: Sink,
    counts: Counts,
    *,
    workers: int,
    rank: int = 0,
    world: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Write one row per image, in order, holding a few hundred images at a time.

    Args:
        recogniser: what to ask.
        found: the images.
        sink: takes the rows, on rank 0.
        counts: the rows are counted here, on rank 0.
        workers: threads that read files ahead.
        rank: which process this is.
        world: how many there are, in a process group; each reads every ``world``-th part.
        advance: is told of every few rows that are done.
    """
    reading = partial(read, recogniser)
    index = 0
    with ThreadPoolExecutor(workers) as pool:
        for some, pixels in ahead(pool, reading, _parts(found, rank, world), workers * _AHEAD):
            for part in _in_order(_rows(recogniser, some, pixels), world):
                rows = [(index + place, *row) for place, row in enumerate(part)]
                index += len(rows)
                unreadable = sum(bool(row[_ERROR]) for row in rows)
                counts.unreadable += unreadable
                counts.predicted += len(rows) - unreadable
                counts.unknown += sum(row[_PREDICTION] == UNKNOWN for row in rows)
                if rank == 0 and rows:
                    sink(rows)
                    advance(len(rows))


@contextmanager
def deciding_together(calibration: Calibration, rate: float, sink: Sink, counts: Counts) -> Iterator[Sink]:
    """A sink whose rows are decided by Benjamini and Hochberg's procedure once all are there.

    They wait in a temporary file. A score that is not finite is always unknown.

    Args:
        calibration: of the score, with known scores.
        rate: see `osr_lightning.scoring.p_values.false_discovery_threshold`.
        sink: takes the decided rows.
        counts: what is counted unknown, and how.

    Yields:
        What takes rows that `classify` decided by the greatest threshold there is.
    """
    tally = np.zeros(len(calibration.known_scores) + 1, np.int64)
    greatest = -sys.float_info.max
    with tempfile.TemporaryFile("w+", encoding="ascii") as file:

        def keep(rows: Iterable[Row]) -> None:
            nonlocal greatest
            kept = list(rows)
            file.writelines(json.dumps(row) + "\n" for row in kept)
            scores = np.array([row[_SCORE] for row in kept if not row[_ERROR]], np.float64)
            np.add.at(tally, places(calibration, scores), 1)
            greatest = max([greatest, *scores[np.isfinite(scores)].tolist()])

        yield keep
        threshold = false_discovery_threshold(calibration, tally, rate, greatest)
        counts.unknown = 0
        file.seek(0)
        while lines := list(islice(file, _AT_ONCE)):
            rows = [json.loads(line) for line in lines]
            readable = [row for row in rows if not row[_ERROR]]
            scores = np.array([row[_SCORE] for row in readable], np.float64)
            unknown = is_unknown(scores, threshold)
            counts.unknown += int(unknown.sum())
            p_value = p_values(calibration, scores).tolist()
            for row, rejected, row[-1] in zip(readable, unknown.tolist(), p_value, strict=True):
                row[_THRESHOLD] = threshold
                row[_PREDICTION] = UNKNOWN if rejected else row[_PREDICTION]
            sink(rows)
    said = describe_rate(calibration, int(tally.sum()), counts.unknown, rate, threshold)
    counts.rule = f"; {said}"


def _parts(found: Iterable[Image], rank: int, world: int) -> Iterator[list[Image]]:
    """This process's share; all processes get equally many parts, the last of them may be empty."""
    rest = iter(found)
    while True:
        parts = [list(islice(rest, AT_ONCE)) for _ in range(world)]
        if not parts[0]:
            return
        yield parts[rank]


def _rows(recogniser: Answering, some: Sequence[Image], pixels: Sequence[Pixels | str]) -> list[Row]:
    """The rows of some files, but for their index."""
    readable = [image for image in pixels if not isinstance(image, str)]
    answers = iter(answer_cells(recogniser, recogniser.answer(np.stack(readable))) if readable else ())
    names = columns(recogniser.score_names, recogniser.threshold.score)
    return [
        (
            path_cell(image.path),
            path_cell(image.source),
            "",
            *(error_cells(found, names) if isinstance(found, str) else next(answers)),
        )
        for image, found in zip(some, pixels, strict=True)
    ]


def _in_order(rows: list[Row], world: int) -> list[list[Row]]:
    """The parts of all processes on rank 0, in the order of the files; elsewhere none."""
    if world == 1:
        return [rows]
    from torch import distributed

    parts: list[list[Row]] | None = [[]] * world if distributed.get_rank() == 0 else None
    distributed.gather_object(rows, parts)
    return parts or []
