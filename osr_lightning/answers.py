"""What is answered to images, whether a network runs in torch or elsewhere. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from osr_lightning.facts import UNKNOWN, Facts
from osr_lightning.files import expand
from osr_lightning.pixels import ImageLike

AT_ONCE = 128  # images that are read and classified together, at most
# of predictions.csv, for a test as for predictions; further scores follow
COLUMNS = (
    *("index", "file", "source", "label", "prediction"),
    *("confidence", "score", "threshold", "error"),
)


@dataclass(frozen=True)
class Prediction:
    """The answer to one image.

    Attributes:
        label: name of the class, or ``unknown``.
        unknown: whether the score is greater than the threshold.
        confidence: in [0, 1], the mean probability of the likeliest class, rejected or not.
        score: higher means more unknown.
        threshold: above it an image is called unknown.
        file: where the image was read from; None for others.
    """

    label: str
    unknown: bool
    confidence: float
    score: float
    threshold: float
    file: str | None = None


class Answers(NamedTuple):
    """What is said of ``N`` images.

    Attributes:
        predicted: ``(N,)`` int64, the likeliest class in ``0 .. K-1``, before any rejection.
        unknown: ``(N,)`` bool, whether the deciding score is above the threshold.
        confidence: ``(N,)`` float64 in [0, 1], the mean probability of the likeliest class.
        scores: score -> ``(N,)`` float64, higher means more unknown; the deciding one among them.
    """

    predicted: NDArray[np.int64]
    unknown: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]


class Deciding(Protocol):
    """A score and the threshold above which it calls an image unknown."""

    score: str

    @property
    def value(self) -> float:
        """The threshold, in units of the score."""


class Answering(Protocol):
    """What answers: a `osr_lightning.recogniser.Recogniser`, or an exported one.

    Attributes:
        facts: of the known images.
    """

    facts: Facts

    @property
    def threshold(self) -> Deciding:
        """What decides."""

    @property
    def score_names(self) -> list[str]:
        """The scores that are answered with."""

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """Any one image -> ``(C, size, size)``; see `osr_lightning.pixels.to_pixels` for what it may be."""

    def answer(self, images: NDArray[np.uint8]) -> Answers:
        """Any number of prepared images ``(N, C, size, size)``; a row does not depend on the others."""


def predictions(
    answering: Answering, images: ImageLike | Sequence[ImageLike], recursive: bool = True
) -> list[Prediction]:
    """One prediction per image, in order; see `osr_lightning.recogniser.Recogniser.predict`.

    Raises:
        UserError: naming the first that is no image or cannot be read.
    """
    found: list[Prediction] = []
    items = expand(images, recursive)
    while some := list(islice(items, AT_ONCE)):
        answers = answering.answer(np.stack([answering.prepare(image) for image in some]))
        for image, row in zip(some, as_rows(answering, answers), strict=True):
            label, confidence, score, threshold, _ = row
            file = str(image) if isinstance(image, (str, Path)) else None
            found.append(Prediction(label, label == UNKNOWN, confidence, score, threshold, file))
    return found


class Row(NamedTuple):
    """The answer to one image, in plain values; ``further`` are the scores that do not decide."""

    prediction: str
    confidence: float
    score: float
    threshold: float
    further: dict[str, float]


def as_rows(answering: Answering, answers: Answers) -> list[Row]:
    """One row per image, with names for numbers."""
    deciding, names = answering.threshold, answering.facts.classes
    threshold = deciding.value
    further = further_scores(answering)
    columns = [answers.scores[name].tolist() for name in further]
    rows = zip(
        answers.predicted.tolist(),
        answers.unknown.tolist(),
        answers.confidence.tolist(),
        answers.scores[deciding.score].tolist(),
        *columns,
        strict=True,
    )
    return [
        Row(
            UNKNOWN if unknown else names[predicted],
            confidence,
            score,
            threshold,
            dict(zip(further, others, strict=True)),
        )
        for predicted, unknown, confidence, score, *others in rows
    ]


def further_scores(answering: Answering) -> list[str]:
    """The scores that do not decide."""
    return [name for name in answering.score_names if name != answering.threshold.score]
