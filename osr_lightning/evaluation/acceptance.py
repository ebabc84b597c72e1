"""Counts of accepted images over all thresholds: what every threshold-free measure and curve is made of."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class Acceptance(NamedTuple):
    """How many images are accepted (called known) at every threshold that makes a difference.

    Attributes:
        threshold: ``(G,)`` the distinct scores, ascending; an image is accepted when its score is at most it.
        known: ``(..., G + 1)`` accepted known images; entry 0 accepts nothing, entry ``g`` is at
            ``threshold[g - 1]``, the last accepts everything.
        correct: ``(..., G + 1)`` accepted known images whose predicted class is right.
        unknown: ``(..., G + 1)`` accepted unknown images.
    """

    threshold: FloatArray
    known: IntArray
    correct: IntArray
    unknown: IntArray

    def at(self, threshold: ArrayLike) -> Acceptance:
        """The counts at any given threshold(s) instead of the distinct scores."""
        index = np.searchsorted(self.threshold, threshold, side="right")
        return Acceptance(
            np.asarray(threshold, np.float64),
            self.known[..., index],
            self.correct[..., index],
            self.unknown[..., index],
        )


def acceptance(score: FloatArray, unknown: BoolArray, correct: BoolArray) -> Acceptance:
    """Count acceptances at every distinct score, in ``O(N log N)``; equal scores move together.

    Args:
        score: ``(N,)``.
        unknown: ``(N,)``.
        correct: ``(N,)`` true where the predicted class is right; ignored for unknown images.
    """
    threshold, group = np.unique(score, return_inverse=True)

    def cumulated(mask: BoolArray) -> IntArray:
        counts = np.bincount(group[mask], minlength=len(threshold))
        return np.concatenate([[0], np.cumsum(counts)])

    return Acceptance(threshold, cumulated(~unknown), cumulated(~unknown & correct), cumulated(unknown))


def area(x: NDArray[Any], y: NDArray[Any]) -> FloatArray:
    """Area under ``y`` against ``x`` by the trapezoid rule over the last axis, which is exact for ties."""
    return np.asarray((np.diff(x) * (y[..., 1:] + y[..., :-1])).sum(-1) / 2, dtype=np.float64)
