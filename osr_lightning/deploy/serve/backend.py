"""A recogniser as the server sees it, a checkpoint's or an exported one; arrays are numpy's."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError
from osr_lightning.images.decode import read_image
from osr_lightning.recogniser.prediction import Answering
from osr_lightning.recogniser.rows import Row, answer_cells, columns

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
        self.spec = recogniser.spec
        self.columns = columns(recogniser.score_names, recogniser.threshold.score)
        self.score, self.threshold = recogniser.threshold.score, recogniser.threshold.value
        self.explain = explain
        self.num_samples = num_samples
        self.rejected_known = rejected_known

    def read(self, data: bytes, name: str) -> Pixels | str:
        """Decode one image file: ``(C, H, W)``, or what is wrong with it. Threads may call this."""
        try:
            image = read_image(io.BytesIO(data), self.spec.image_size, name)
            return self.recogniser.prepare(image.transpose(1, 2, 0))  # as an array has them
        except UserError as error:
            return str(error)

    def rows(self, pixels: Pixels) -> list[Row]:
        """What follows ``label`` in each row, for ``(B, C, H, W)``; one thread calls this."""
        return list(answer_cells(self.recogniser, self.recogniser.answer(pixels)))
