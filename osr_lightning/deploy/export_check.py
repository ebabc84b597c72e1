"""Whether an exported graph decides as its recogniser does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from osr_lightning.deploy.runtime import OUTPUTS
from osr_lightning.errors import Failure
from osr_lightning.recogniser import Recogniser

TOLERANCE = 1e-4  # of a score, or of its size where that is above 1
FAR, FAR_TOLERANCE = 100, 1e-3  # a score that many times the threshold hangs on float32's last digits
BATCHES = (1, 2, 7)
MOST_OTHERWISE = 0.02  # share of images that a quantised graph may decide otherwise

Run: TypeAlias = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.generic]]]
"""Prepared images ``(B, C, size, size)`` -> the graph's outputs, in their order."""


class Check(NamedTuple):
    """How a graph compares with its recogniser.

    Attributes:
        images: how many it was asked about.
        difference: the greatest of two scores, in units of the score where that is above 1, and a tenth of
            it where the score is more than 100 times the threshold.
        within: images so near to the threshold that they need not be decided alike.
        otherwise: images that a quantised graph decides otherwise; others decide none.
    """

    images: int
    difference: float
    within: int
    otherwise: int = 0


def compare(recogniser: Recogniser, run: Run, images: NDArray[np.uint8], name: str) -> Check:
    """Ask both about the same images, the graph in batches of 1, 2 and 7.

    Args:
        recogniser: what the graph was made of.
        run: asks the graph.
        images: prepared, ``(N, C, size, size)``.
        name: of the graph, for the sentence.

    Raises:
        Failure: where a score differs by more than ``TOLERANCE``, or an image that is further than that from
            the threshold is decided otherwise.
    """
    expected, threshold = recogniser.answer(images), recogniser.threshold
    score = expected.scores[threshold.score]
    prediction = np.where(expected.unknown, recogniser.facts.num_classes, expected.predicted)
    scale = np.maximum(1, np.abs(score))
    near = np.abs(score - threshold.value) <= TOLERANCE * np.maximum(scale, abs(threshold.value))
    scale[scale > FAR * max(1, abs(threshold.value))] *= FAR_TOLERANCE / TOLERANCE
    worst = np.float64(0)
    for size in BATCHES:
        parts = [run(images[start : start + size]) for start in range(0, len(images), size)]
        found = dict(zip(OUTPUTS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
        worst = np.maximum(worst, (np.abs(found["score"] - score) / scale).max())  # keeps NaN
        other = int(((found["prediction"] != prediction) & ~near).sum())
        if not worst <= TOLERANCE or other:
            raise Failure(
                f"{name} is not written: asked in batches of {size}, its scores differ from the "
                f"recogniser's by up to {worst:.1e} and {other} of {len(images)} images are decided otherwise"
            )
    return Check(len(images), float(worst), int(near.sum()))


def compare_int8(recogniser: Recogniser, run: Run, images: NDArray[np.uint8], name: str) -> Check:
    """Ask a quantised graph about images: its scores differ, its decisions may on few of them.

    Raises:
        Failure: where more than one image in fifty is decided otherwise.
    """
    expected, threshold = recogniser.answer(images), recogniser.threshold
    score = expected.scores[threshold.score]
    parts = [run(images[start : start + 64]) for start in range(0, len(images), 64)]
    found = dict(zip(OUTPUTS, map(np.concatenate, zip(*parts, strict=True)), strict=True))
    prediction = np.where(expected.unknown, recogniser.facts.num_classes, expected.predicted)
    otherwise = int((found["prediction"] != prediction).sum())
    difference = float((np.abs(found["score"] - score) / np.maximum(1, np.abs(score))).max())
    if otherwise > MOST_OTHERWISE * len(images):
        raise Failure(
            f"{name} is not written: in 8 bits {otherwise} of {len(images)} images are decided otherwise; "
            "export it without --int8, or give --int8 more of the known images"
        )
    return Check(len(images), difference, 0, otherwise)


def example_images() -> Iterator[NDArray[np.uint8]]:
    """Real images that every installation has: 40 of scikit-learn's digits and 32 parts of its two photos.

    Yields:
        Grey ``(8, 8)`` and colour ``(106, 160, 3)``, as `Recogniser.prepare` takes them.
    """
    from sklearn.datasets import load_digits, load_sample_images

    yield from (load_digits().images[:40] * (255 / 16)).round().astype(np.uint8)
    for photo in load_sample_images().images:
        height, width = (size // 4 for size in photo.shape[:2])
        for row in range(4):
            for column in range(4):
                yield photo[row * height :, column * width :][:height, :width]
