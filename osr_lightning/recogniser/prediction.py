"""What is answered to images, whether a network runs in torch or elsewhere. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from osr_lightning.data_spec import UNKNOWN, DataSpec
from osr_lightning.errors import UserError, one_line
from osr_lightning.images.find import expand
from osr_lightning.images.pixels import ImageLike
from osr_lightning.recogniser.examples import Examples
from osr_lightning.scoring.calibration import Calibration
from osr_lightning.scoring.p_values import p_values

AT_ONCE = 128  # images that are read and classified together, at most
_VALUES_AT_ONCE = 2**19  # of their pixels
_FEWEST = 16  # images of fewer than so many to a batch are asked singly


@dataclass(frozen=True)
class Prediction:
    """The answer to one image, for a person.

    Attributes:
        label: name of the class, or ``unknown``.
        unknown: whether the score is greater than the threshold.
        confidence: in [0, 1], the mean probability of the likeliest class, rejected or not.
        score: higher means more unknown.
        threshold: above it an image is called unknown.
        file: where the image was read from; None for others.
        p_value: the share of known images that look as unknown, see `osr_lightning.scoring.p_values`; None
            where the threshold was given as a number, or the checkpoint keeps no scores of known images.
    """

    label: str
    unknown: bool
    confidence: float
    score: float
    threshold: float
    file: str | None = None
    p_value: float | None = None

    def _repr_html_(self) -> str:
        """As a notebook shows it: the label, and the score beside the threshold."""
        sign, colour = ("&gt;", "#d93025") if self.unknown else ("&le;", "#1e8e3e")
        said = f"score {self.score:.4g} {sign} threshold {self.threshold:.4g}"
        if self.p_value is not None:
            said += f", p {self.p_value:.3g}"
        where = "" if self.file is None else f" <code>{escape(self.file)}</code>"
        return f'<b style="color:{colour}">{escape(self.label)}</b> ({said}){where}'


class Answers(NamedTuple):
    """What is said of a batch of ``B`` images: tensors of torch, or arrays of numpy.

    Attributes:
        prediction: ``(B,)`` int64, the class in ``0 .. K-1``, or ``K`` for unknown.
        unknown: ``(B,)`` bool, whether the deciding score is above the threshold.
        score: ``(B,)`` float64, the deciding one; higher means more unknown.
        confidence: ``(B,)`` float64 in [0, 1], the mean probability of the likeliest class.
        probabilities: ``(B, K)`` float64, the mean over samples.
        scores: name -> ``(B,)`` float64 of every score that was worked out; the deciding one among them.
    """

    prediction: Any
    unknown: Any
    score: Any
    confidence: Any
    probabilities: Any
    scores: dict[str, Any]


# what an exported graph gives, in this order
OUTPUTS = Answers._fields[:5]


class Deciding(Protocol):
    """A score and the threshold above which it calls an image unknown."""

    score: str

    @property
    def record(self) -> Calibration:
        """Where the threshold came from."""

    @property
    def value(self) -> float:
        """The threshold, in units of the score."""


class Answering(Protocol):
    """What answers: a `osr_lightning.recogniser.recogniser.Recogniser`, or an exported one.

    Attributes:
        spec: of the known images.
        examples: pictures of known classes to try it with.
    """

    spec: DataSpec
    examples: Examples

    @property
    def threshold(self) -> Deciding:
        """What decides."""

    @property
    def score_names(self) -> list[str]:
        """The scores that are answered with."""

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """Any one image -> ``(C, size, size)``; see `to_pixels` for what it may be."""

    def answer(self, images: NDArray[np.uint8]) -> Answers:
        """Any number of prepared images ``(N, C, size, size)``.

        A row does not depend on the others, that of an exported graph but for a score's last digits.
        """


_NAMED = 6  # classes, in a line


def batch_size(input_shape: Sequence[int], most: int) -> int:
    """Images that are asked about together: ``most``, or as many as fit.

    A batch is always filled up, so that the same kernels work on every image. For small images that costs
    nothing; one large image takes as long as the others of its batch each do, and is asked alone.
    """
    fitting = _VALUES_AT_ONCE // math.prod(input_shape)
    return min(most, fitting) if fitting >= _FEWEST else 1


def check_prepared(images: object, input_shape: Sequence[int]) -> None:
    """Refuse what is no batch of prepared images.

    Args:
        images: what was given as such.
        input_shape: ``(C, H, W)`` of one image.

    Raises:
        UserError: naming `predict`, which prepares images.
    """
    wanted = tuple(input_shape)
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != wanted:
        told = type(images).__name__
        if isinstance(images, np.ndarray):
            told = f"{images.dtype} of shape {images.shape}"
        raise UserError(
            "answer takes images that prepare gave, an array of uint8 of shape "
            f"(N, {', '.join(map(str, wanted))}), not {told}; predict takes any image"
        )


class Predicting:
    """The question that people ask of what answers, whether in torch or elsewhere."""

    def __repr__(self: Answering) -> str:
        """What it knows, and what decides, in a line."""
        spec, deciding = self.spec, self.threshold
        names = one_line(", ".join([*spec.classes[:_NAMED], *["…"] * (spec.num_classes > _NAMED)]))
        colour = "grey" if spec.channels == 1 else "colour"
        try:
            rule = f"unknown where {deciding.score} is above {deciding.value:.6g}"
        except UserError:
            rule = f"no threshold of {deciding.score} yet"
        return (
            f"<{type(self).__name__} of {spec.num_classes:,} classes ({names}), {colour} images of "
            f"{spec.image_size} pixels a side; {rule}>"
        )

    def predict(
        self: Answering, images: ImageLike | Sequence[ImageLike], recursive: bool = True
    ) -> list[Prediction]:
        """Name what is in each image, or call it unknown.

        Args:
            images: one image or a list: a path of a file, a folder or a glob; the bytes of an image file, or
                one that is open for reading them; a PIL image; an array
                ``(H, W)`` or ``(H, W, C)`` with ``C`` from 1 to 4, or several as ``(N, H, W)``,
                ``(N, H, W, C)`` or ``(N, C, H, W)``; a tensor ``(H, W)``, ``(C, H, W)`` or
                ``(N, C, H, W)``. An array of three axes has its channels last, so ``(3, 28, 28)`` is three
                grey images; a tensor has them first, so it is one of colour. Values are uint8, bool,
                uint16 in ``[0, 65535]``, other whole numbers in ``[0, 255]``, or floats in ``[0, 1]``.
            recursive: whether a folder's own folders count.

        Returns:
            One prediction per image, in order.

        Raises:
            UserError: naming the first that is no image or cannot be read.
        """
        found: list[Prediction] = []
        items = expand(images, recursive)
        while some := list(islice(items, AT_ONCE)):
            answers = self.answer(np.stack([self.prepare(image) for image in some]))
            files = [str(image) if isinstance(image, (str, Path)) else None for image in some]
            found += [to_prediction(self, answers, row, file) for row, file in enumerate(files)]
        return found


def to_prediction(answering: Answering, answers: Answers, row: int, file: str | None) -> Prediction:
    """The answer to the image at ``row`` of a batch, for a person."""
    deciding, score = answering.threshold, float(answers.score[row])
    p = float(p_values(deciding.record, np.array([score]))[0])
    return Prediction(
        label=[*answering.spec.classes, UNKNOWN][int(answers.prediction[row])],
        unknown=bool(answers.unknown[row]),
        confidence=float(answers.confidence[row]),
        score=score,
        threshold=deciding.value,
        file=file,
        p_value=None if math.isnan(p) else p,
    )
