"""The images that a person looks at again: those called unknown, and the known ones that nearly were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from osr_lightning.atomic_write import as_text
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.deploy.answers import read_answers
from osr_lightning.deploy.predict import Counts, Image, classify, images, read
from osr_lightning.errors import UserError
from osr_lightning.images.ahead import ahead
from osr_lightning.images.pixels import picture_file, to_picture
from osr_lightning.models.modes import evaluating
from osr_lightning.models.sampling import PENULTIMATE
from osr_lightning.recogniser.examples import small
from osr_lightning.recogniser.prediction import AT_ONCE, batch_size
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.recogniser.rows import COLUMNS, Row, file_of_cell, find_file, places_of_cells
from osr_lightning.scoring.scores import mean_log_probability
from osr_lightning.scoring.sweep import Floats

SIDE = 96  # pixels of a small picture, at most
NEAR = 24  # known images that are shown
_NAMED = 3  # of the images that are gone
_QUALITY = 75  # of a JPEG
_AHEAD = 4  # batches per worker that are read before they are needed
_PREDICTION, _SCORE, _ERROR = map(COLUMNS.index, ("prediction", "score", "error"))


class Answered(NamedTuple):
    """An image and what was said of it.

    Attributes:
        path: of its file.
        score: higher means more unknown.
        known: the class that it was called, in ``0 .. K-1``; -1 for unknown.
    """

    path: Path
    score: float
    known: int


class Chosen(NamedTuple):
    """What is to be looked at again.

    Attributes:
        images: unknown ones in the order of the answers, then known ones by falling score.
        answers: how many images there were.
        unknown: how many of them are called unknown.
        drawn: how many of those are to be shown.
        gone: files that are not there any more.
    """

    images: list[Answered]
    answers: int
    unknown: int
    drawn: int
    gone: list[Path]


class Seen(NamedTuple):
    """An image that was looked at again.

    Attributes:
        image: it, and what was said of it.
        features: ``(D,)`` float32 of unit length, of the penultimate layer.
        probabilities: ``(K,)`` float64.
        thumbnail: a JPEG of what the network sees, at most `SIDE` pixels a side.
    """

    image: Answered
    features: NDArray[np.float32]
    probabilities: Floats
    thumbnail: bytes


def from_table(path: str, recogniser: Recogniser, counts: Counts | None = None) -> Iterator[Answered]:
    """The images of a table of ``osr predict``; a relative file may also lie beside the table.

    Args:
        path: of the table.
        recogniser: what was asked.
        counts: the images that could not be read, which are left out, are counted here.

    Raises:
        UserError: see `read_answers`; or where a row names no file, or a class that there is not.
    """
    place_of = places_of_cells([*recogniser.spec.classes, UNKNOWN])
    threshold, table = recogniser.threshold, Path(path).expanduser()
    for answer in read_answers(path, threshold.score, threshold.value):
        if answer.score is None:
            if counts is not None:
                counts.unreadable += 1
            continue
        if not answer.file:
            raise UserError(
                f"{path}: its images have no files, as they are of a source; predict files or folders"
            )
        if answer.prediction not in place_of:
            raise UserError(
                f"{path}: {answer.prediction!r} is no class of the checkpoint; predict again with this one"
            )
        file = find_file(answer.file, table) or Path(file_of_cell(answer.file)).expanduser()
        yield _answered(file, answer.score, place_of[answer.prediction], recogniser)


def from_files(
    paths: Sequence[str], recogniser: Recogniser, workers: int, counts: Counts
) -> Iterator[Answered]:
    """The images of files, folders and globs, which are predicted now, without those that cannot be read.

    Args:
        paths: as a user names them.
        recogniser: what to ask.
        workers: threads that read files ahead.
        counts: what becomes of the files is counted here.

    Raises:
        UserError: where there are none.
    """
    files = list(images(paths, counts))
    if not files:
        raise UserError(f"there are no images in {', '.join(paths)}")
    rows: list[Row] = []
    classify(recogniser, files, rows.extend, counts, workers=workers)
    place_of = places_of_cells([*recogniser.spec.classes, UNKNOWN])
    for file, row in zip(files, rows, strict=True):
        if not row[_ERROR]:
            yield _answered(file.path, row[_SCORE], place_of[row[_PREDICTION]], recogniser)


def _answered(file: Path, score: float, place: int, recogniser: Recogniser) -> Answered:
    return Answered(file, score, place if place < recogniser.spec.num_classes else -1)


def choose(answered: Iterable[Answered], most: int) -> Chosen:
    """The unknown images, ``most`` of them drawn at random if there are more, and known ones of great scores.

    Raises:
        UserError: where there are none, or all of them are gone.
    """
    each = {image.path: image for image in answered}  # a file that is named twice is one image
    if not each:
        raise UserError("there is no image in what was given that could be read: give others")
    unknown = [image for image in each.values() if image.known < 0]
    known = sorted((image for image in each.values() if image.known >= 0), key=lambda one: -one.score)
    drawn = sorted(np.random.RandomState(0).permutation(len(unknown))[:most].tolist())
    wanted = [*(unknown[row] for row in drawn), *known[:NEAR]]
    gone = [image.path for image in wanted if not image.path.is_file()]
    if gone and len(gone) == len(wanted):
        raise UserError(f"{missing(gone, len(wanted))}; run from the folder that the paths begin in")
    there = [image for image in wanted if image.path not in {*gone}]
    return Chosen(there, len(each), len(unknown), len(drawn), gone)


def missing(gone: Sequence[Path], wanted: int) -> str:
    """The sentence about images that are not there any more: how many, and which first."""
    named = ", ".join(as_text(path) for path in gone[:_NAMED]) + ", …" * (len(gone) > _NAMED)
    return f"{len(gone):,} of {wanted:,} images are gone ({named})"


@torch.inference_mode()
def look(
    recogniser: Recogniser,
    chosen: Sequence[Answered],
    *,
    workers: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Seen]:
    """Look at images again, for their features; those that cannot be read any more are left out.

    Args:
        recogniser: what they were asked of.
        chosen: the images.
        workers: threads that read files ahead.
        advance: is told of every few images that are done.
    """
    rest = iter(chosen)
    size = batch_size(recogniser.spec.input_shape, AT_ONCE)
    parts = iter(lambda: list(islice(rest, size)), [])
    reading = partial(_read, recogniser)
    with ThreadPoolExecutor(workers) as pool, evaluating(recogniser):
        for some, pixels in ahead(pool, reading, parts, workers * _AHEAD):
            readable = [(one, found) for one, found in zip(some, pixels, strict=True) if found is not None]
            if readable:
                features, probabilities = _features(recogniser, np.stack([found for _, found in readable]))
                for (one, found), vector, chances in zip(readable, features, probabilities, strict=True):
                    yield Seen(one, vector, chances, _thumbnail(found))
            advance(len(some))


def _read(recogniser: Recogniser, some: Sequence[Answered]) -> list[NDArray[np.uint8] | None]:
    found = read(recogniser, [Image(one.path, "") for one in some])
    return [None if isinstance(pixels, str) else pixels for pixels in found]


def _features(recogniser: Recogniser, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Floats]:
    given = torch.from_numpy(pixels).to(next(recogniser.parameters()).device)
    sampled = recogniser.sampler(recogniser.standardise(given), (PENULTIMATE,))
    features = F.normalize(sampled.features[PENULTIMATE].float())
    chances = mean_log_probability(sampled.logits).exp()
    return features.cpu().numpy(), chances.cpu().numpy()


def _thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    return picture_file(to_picture(small(pixels, SIDE)), "JPEG", quality=_QUALITY)
