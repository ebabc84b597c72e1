"""What a measure is taken on: some of a test's images, the truth and the answers side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from osr_lightning.evaluation.acceptance import BoolArray, FloatArray, IntArray
from osr_lightning.evaluation.prediction_table import PredictionTable

Needs = Literal["nothing", "known", "unknown", "both"]


@dataclass(frozen=True)
class Outcomes:
    """What ``N`` test images are, and what was answered.

    Attributes:
        label: ``(N,)`` in ``0 .. K``; ``K`` is unknown.
        predicted_class: ``(N,)`` in ``0 .. K-1``, before any rejection.
        score: ``(N,)`` higher means more unknown.
        rejected: ``(N,)`` true where the image is called unknown.
        num_classes: ``K``.
    """

    label: IntArray
    predicted_class: IntArray
    score: FloatArray
    rejected: BoolArray
    num_classes: int

    @classmethod
    def of(cls, table: PredictionTable, mask: BoolArray | None = None) -> Outcomes:
        """Those of a table's images that ``mask``, ``(N,)``, chooses; all without one."""
        chosen = slice(None) if mask is None else mask
        return cls(
            table.label[chosen],
            table.predicted_class[chosen],
            table.score[chosen],
            table.rejected[chosen],
            table.num_classes,
        )

    @property
    def unknown(self) -> BoolArray:
        """``(N,)`` true where the image is of no known class."""
        return np.equal(self.label, self.num_classes)

    @property
    def correct(self) -> BoolArray:
        """``(N,)`` true where the predicted class is right, rejected or not; never for unknown images."""
        return np.equal(self.predicted_class, self.label)

    @property
    def prediction(self) -> IntArray:
        """``(N,)`` in ``0 .. K``: the predicted class, or ``K`` where rejected."""
        return np.where(self.rejected, self.num_classes, self.predicted_class)


def enough(needs: Needs, unknown: BoolArray) -> bool:
    """Whether there are images of the kinds that a measure or a figure needs.

    Args:
        needs: the kinds.
        unknown: ``(N,)`` of the images there are.
    """
    return bool(
        (needs in ("nothing", "unknown") or not unknown.all())
        and (needs in ("nothing", "known") or unknown.any())
    )
