"""The command ``osr predict --ckpt_path CKPT PATH…``: a row for every image file, whatever is in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from osr_lightning.decoding import read_image
from osr_lightning.deploy.sinks import Row, Sink
from osr_lightning.errors import UserError
from osr_lightning.facts import UNKNOWN
from osr_lightning.files import as_text, find
from osr_lightning.pixels import to_uint8_images
from osr_lightning.recogniser import Recogniser

T = TypeVar("T")
FILES_AT_ONCE = 128  # read by one task, and classified together
_AHEAD = 4  # tasks per worker that are read before they are needed


class Image(NamedTuple):
    """A file to classify: its path, and the argument that it was found by."""

    path: Path
    source: str


@dataclass
class Counts:
    """What became of the files: the summary's numbers."""

    predicted: int = 0
    unknown: int = 0
    unreadable: int = 0
    skipped: int = 0

    def __str__(self) -> str:
        """``23 predicted (4 unknown), 2 unreadable, 3 skipped (not images)``."""
        text = f"{self.predicted:,} predicted ({self.unknown:,} unknown)"
        if self.unreadable:
            text += f", {self.unreadable:,} unreadable"
        return text + (f", {self.skipped:,} skipped (not images)" if self.skipped else "")


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
                counts.skipped += 1


def read(some: Sequence[Image], *, size: int, channels: int) -> list[Tensor | str]:
    """Read files; ``(channels, size, size)`` uint8 each, or what is wrong with it."""
    found: list[Tensor | str] = []
    for image in some:
        try:
            pixels = read_image(image.path, size)
            found.append(to_uint8_images(pixels[None], size=size, channels=channels)[0])
        except UserError as error:
            found.append(str(error))
    return found


def classify(
    recogniser: Recogniser,
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
    facts = recogniser.facts
    reading = partial(read, size=facts.image_size, channels=facts.channels)
    index = 0
    with ThreadPoolExecutor(workers) as pool:
        for some, pixels in _ahead(pool, reading, _parts(found, rank, world), workers * _AHEAD):
            rows = _rows(recogniser, some, pixels)
            for part in _in_order(rows, world):
                for row in part:
                    row["index"] = index
                    index += 1
                    counts.unreadable += bool(row["error"])
                    counts.predicted += not row["error"]
                    counts.unknown += row["prediction"] == UNKNOWN
                if rank == 0 and part:
                    sink(part)
                    advance(len(part))


def columns(recogniser: Recogniser) -> list[str]:
    """The columns of every row: those of a test's ``predictions.csv``."""
    from osr_lightning.evaluation.table import CSV_COLUMNS

    return [*CSV_COLUMNS, *_further(recogniser)]


def _further(recogniser: Recogniser) -> list[str]:
    return [name for name in recogniser.score_names if name != recogniser.threshold.score]


def _parts(found: Iterable[Image], rank: int, world: int) -> Iterator[list[Image]]:
    """This process's share; all processes get equally many parts, the last of them may be empty."""
    rest = iter(found)
    while True:
        parts = [list(islice(rest, FILES_AT_ONCE)) for _ in range(world)]
        if not parts[0]:
            return
        yield parts[rank]


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[Sequence[Image]], T], parts: Iterable[list[Image]], ahead: int
) -> Iterator[tuple[list[Image], T]]:
    rest = iter(parts)
    waiting = deque((part, pool.submit(work, part)) for part in islice(rest, ahead))
    while waiting:
        part, result = waiting.popleft()
        waiting.extend((more, pool.submit(work, more)) for more in islice(rest, 1))
        yield part, result.result()


def _rows(recogniser: Recogniser, some: Sequence[Image], pixels: Sequence[Tensor | str]) -> list[Row]:
    readable = [image for image in pixels if isinstance(image, Tensor)]
    answers: Iterator[dict[str, object]] = iter(())
    if readable:
        answers = _answers(recogniser, torch.stack(readable))
    rows = []
    for image, found in zip(some, pixels, strict=True):
        row: Row = {"file": shown(image.path), "source": shown(Path(image.source)), "label": "", "error": ""}
        if isinstance(found, str):
            row |= dict.fromkeys(("prediction", "confidence", "score", "threshold"), "")
            row |= dict.fromkeys(_further(recogniser), "")
            row["error"] = found
        else:
            row |= next(answers)
        rows.append(row)
    return rows


def _answers(recogniser: Recogniser, pixels: Tensor) -> Iterator[dict[str, object]]:
    rows = recogniser.describe_evenly(pixels)
    score = rows[f"score/{recogniser.threshold.score}"]
    unknown, threshold = recogniser.threshold(score).tolist(), recogniser.threshold.value
    names = _further(recogniser)
    values = zip(
        rows["predicted_class"].tolist(),
        unknown,
        rows["confidence"].tolist(),
        score.tolist(),
        *(rows[f"score/{name}"].tolist() for name in names),
        strict=True,
    )
    for predicted, rejected, confidence, value, *others in values:
        yield {
            "prediction": UNKNOWN if rejected else recogniser.facts.classes[predicted],
            "confidence": confidence,
            "score": value,
            "threshold": threshold,
            **dict(zip(names, others, strict=True)),
        }


def _in_order(rows: list[Row], world: int) -> list[list[Row]]:
    """The parts of all processes on rank 0, in the order of the files; elsewhere none."""
    if world == 1:
        return [rows]
    from torch import distributed

    parts: list[list[Row]] | None = [[]] * world if distributed.get_rank() == 0 else None
    distributed.gather_object(rows, parts)
    return parts or []


def shown(path: Path) -> str:
    """A path as text that any file can hold and that no spreadsheet takes for a formula."""
    text = as_text(path)
    return f"./{text}" if text[:1] in "=+-@\t\r" else text
