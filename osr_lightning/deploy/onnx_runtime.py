"""An exported recogniser, asked through onnxruntime, numpy and Pillow alone."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.images import pixels
from osr_lightning.images.pixels import ImageLike
from osr_lightning.recogniser.prediction import OUTPUTS, Answers, Prediction, predictions

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUTS = ("images", "threshold")
_AT_ONCE = 16  # images, the largest batch that an image alone does not wait for
# of the graph's metadata, each a JSON value
SPEC, DECISION = "facts", "decision"


@dataclass
class Decision:
    """The score that the graph gives, and the threshold above which it calls an image unknown.

    Attributes:
        score: its name.
        value: the threshold; another may be set.
        record: where the calibrated one came from, as in ``results.json``.
    """

    score: str
    value: float
    record: Mapping[str, Any]


class ExportedRecogniser:
    """A graph that ``osr export`` wrote, with the questions of `Recogniser`.

    Several threads may ask at once.

    Args:
        path: of an ``.onnx`` file.
        threads: for one operator; onnxruntime's choice if not given.

    Attributes:
        spec: of the known images.
        threshold: what decides.

    Raises:
        UserError: if the file is missing, or was not written by ``osr export``; or where onnxruntime is.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"{path} needs onnxruntime: pip install onnxruntime") from error
        if not os.path.isfile(path):
            raise UserError(f"there is no file {path}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = threads or 0
        try:
            self.session: InferenceSession = onnxruntime.InferenceSession(
                os.fspath(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of a dozen kinds of its own
            raise UserError(f"{path} is no ONNX graph that onnxruntime can run; export it again") from error
        kept = self.session.get_modelmeta().custom_metadata_map
        given = tuple(one.name for one in self.session.get_outputs())
        if given != OUTPUTS or not {SPEC, DECISION} <= set(kept):
            raise UserError(f"{path} was not written by osr export; export a checkpoint with it")
        try:
            self.spec = DataSpec.from_dict(json.loads(kept[SPEC]))
            record = json.loads(kept[DECISION])
            self.threshold = Decision(str(record["score"]), float(record["value"]), record)
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}); export it again") from error

    @property
    def score_names(self) -> list[str]:
        """The one score of the graph."""
        return [self.threshold.score]

    def decide_by(self, score: str | None = None, threshold: float | None = None) -> None:
        """Decide by a threshold that is given as a number.

        Raises:
            UserError: for another score than the graph's, or a threshold that is not finite.
        """
        if score not in (None, self.threshold.score):
            raise UserError(
                f"the exported graph has no score {score!r}, only {self.threshold.score}; "
                f"export the checkpoint again with --score {score}"
            )
        if threshold is not None:
            if not math.isfinite(threshold):
                raise UserError(f"a threshold is a finite number, not {threshold}")
            self.threshold.value = threshold

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """Any one image -> ``(C, size, size)``; see `to_pixels` for what it may be."""
        size, channels = self.spec.image_size, self.spec.channels
        return pixels.fit(pixels.to_pixels(image, size), size=size, channels=channels)

    def answer(self, images: NDArray[np.uint8]) -> Answers:
        """What is said of prepared images ``(N, C, size, size)``.

        The graph is asked in batches of one size, the last filled up: the same kernels then work on every
        image, and what comes with it moves no more than a score's last digits.
        """
        answers = dict(zip(OUTPUTS, self._run(images), strict=True))
        return Answers(**answers, scores={self.threshold.score: answers["score"]})

    def _run(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        threshold = np.array(self.threshold.value, np.float64)
        parts = []
        for start in range(0, max(1, len(images)), _AT_ONCE):
            some = images[start : start + _AT_ONCE]
            filled = np.zeros((_AT_ONCE, *self.spec.input_shape), np.uint8)
            filled[: len(some)] = some
            found = self.session.run(OUTPUTS, dict(zip(INPUTS, (filled, threshold), strict=True)))
            parts.append([values[: len(some)] for values in found])
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def predict(self, images: ImageLike | Sequence[ImageLike], recursive: bool = True) -> list[Prediction]:
        """Name what is in each image, or call it unknown.

        Args:
            images: one image or a list: paths, folders, globs, PIL images or arrays; see
                `osr_lightning.recogniser.recogniser.Recogniser.predict`.
            recursive: whether a folder's own folders count.

        Returns:
            One prediction per image, in order.

        Raises:
            UserError: naming the first that is no image or cannot be read.
        """
        return predictions(self, images, recursive)
