"""Measures of the known images alone, none rejected: arrays -> one number, ``None`` where there are none."""

from __future__ import annotations

import numpy as np

from osr_lightning.evaluation.acceptance import BoolArray, FloatArray, IntArray


def risk_coverage(score: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share accepted and error rate among the accepted, accepting the lowest scores first.

    Images of equal score have no order: each carries its tie's mean error, the expectation over orders.

    Returns:
        coverage and risk, both ``(N,)`` in [0, 1].
    """
    _, group = np.unique(score, return_inverse=True)
    tie_error = np.bincount(group, weights=~correct) / np.maximum(np.bincount(group), 1)
    accepted = np.arange(1, len(score) + 1)
    return accepted / max(len(score), 1), np.cumsum(tie_error[np.sort(group)]) / accepted


def aurc(score: FloatArray, correct: BoolArray) -> float | None:
    """Area under the risk-coverage curve in [0, 1], lower is better (Geifman and El-Yaniv 2017).

    Args:
        score: ``(N,)`` of known images.
        correct: ``(N,)`` true where the predicted class is right.
    """
    return float(np.mean(risk_coverage(score, correct)[1])) if len(score) else None


def calibration_bins(
    confidence: FloatArray, correct: BoolArray, bins: int = 15
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Sort images into equal-width bins ``(low, high]`` of confidence.

    Returns:
        count, mean confidence and accuracy per bin, each ``(bins,)``; the last two are 0 where the count is.
    """
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = np.maximum(count, 1)
    mean_confidence = np.bincount(index, weights=confidence, minlength=bins) / filled
    return count, mean_confidence, np.bincount(index, weights=correct, minlength=bins) / filled


def ece(confidence: FloatArray, correct: BoolArray, bins: int = 15) -> float | None:
    """Expected calibration error in [0, 1]: ``sum_b n_b/N |accuracy_b - confidence_b|`` (Guo et al. 2017)."""
    if not len(confidence):
        return None
    count, mean_confidence, accuracy = calibration_bins(confidence, correct, bins)
    return float(count @ np.abs(accuracy - mean_confidence) / len(confidence))
