"""What the server asks of a recogniser, a checkpoint's or an exported one; arrays are numpy's."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from osr_lightning.answers import Answering, as_rows
from osr_lightning.decoding import read_image
from osr_lightning.deploy.opening import is_exported, load
from osr_lightning.deploy.predict import columns
from osr_lightning.deploy.sinks import Row
from osr_lightning.errors import UserError

if TYPE_CHECKING:
    from osr_lightning.recogniser import Recogniser

Pixels: TypeAlias = NDArray[np.uint8]


class Explanation(NamedTuple):
    """What stands behind the answer to one image.

    Attributes:
        probabilities: ``(K,)`` float64, the mean over the samples.
        samples: ``(S, K)`` float64, the probabilities by each; None where they are not to be had.
    """

    probabilities: NDArray[np.float64]
    samples: NDArray[np.float64] | None


class Backend:
    """A recogniser as the server sees it.

    Args:
        recogniser: what answers.
        explain: more about prepared images ``(1, C, H, W)``.
        num_samples: ``S``; None where single samples cannot be asked.
        rejected_known: share of the known calibration images that the threshold rejects; None where it was
            not calibrated.
    """

    def __init__(
        self,
        recogniser: Answering,
        explain: Callable[[Pixels], Explanation],
        num_samples: int | None,
        rejected_known: float | None,
    ) -> None:
        self.recogniser = recogniser
        self.facts = recogniser.facts
        self.columns = columns(recogniser)
        self.score, self.threshold = recogniser.threshold.score, recogniser.threshold.value
        self.explain = explain
        self.num_samples = num_samples
        self.rejected_known = rejected_known

    def read(self, data: bytes, name: str) -> Pixels | str:
        """Decode one image file: ``(C, H, W)``, or what is wrong with it. Threads may call this."""
        try:
            image = read_image(io.BytesIO(data), self.facts.image_size, name)
            return self.recogniser.prepare(image.transpose(1, 2, 0))  # as an array has them
        except UserError as error:
            return str(error)

    def rows(self, pixels: Pixels) -> list[Row]:
        """The image's own part of each row, for ``(B, C, H, W)``; one thread calls this."""
        rows = [row._asdict() for row in as_rows(self.recogniser, self.recogniser.answer(pixels))]
        return [row.pop("further") | row for row in rows]


def open_backend(
    path: str,
    *,
    score: str | None = None,
    threshold: float | None = None,
    trust: bool = False,
    device: str = "auto",
) -> Backend:
    """Load what is to be served.

    Args:
        path: of a checkpoint, or of an ``.onnx`` file, for which torch is not loaded.
        score: the score that decides; the file's if not given.
        threshold: above it an image is unknown; the calibrated one if not given.
        trust: whether a checkpoint may name code to import beside this package's own.
        device: where a checkpoint computes; ``auto`` is a GPU where there is one.

    Raises:
        UserError: where it cannot be loaded, has no threshold, or draws new masks for each image.
    """
    if is_exported(path):
        from osr_lightning.deploy.runtime import ExportedRecogniser

        exported = ExportedRecogniser(path)
        exported.decide_by(score, threshold)
        rejected = None if threshold is not None else exported.threshold.record.get("rejected_known")
        return Backend(exported, lambda p: Explanation(exported.probabilities(p)[0], None), None, rejected)
    from osr_lightning.deploy.serve import sampled

    recogniser = load(path, trust=trust, device=sampled.chosen(device))
    if TYPE_CHECKING:
        assert isinstance(recogniser, Recogniser)
    sampled.check_repeatable(recogniser, path)
    recogniser.decide_by(score, threshold)
    return Backend(
        recogniser,
        lambda pixels: sampled.explain(recogniser, pixels),
        recogniser.sampler.num_samples,
        recogniser.threshold.record.rejected_known,
    )
