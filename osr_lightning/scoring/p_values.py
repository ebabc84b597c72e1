"""Conformal p-values: how many of the known calibration images look as unknown as an image does."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration, kept_ranks
from osr_lightning.scoring.sweep import Floats


def p_values(calibration: Calibration, scores: Floats) -> Floats:
    """The conformal p-value of each score, ``(1 + how many of n known scores are as great) / (n + 1)``.

    If a known image is exchangeable with the ``n`` calibration images, its p-value is at most ``p`` with
    probability at most ``p`` (Vovk et al. 2005), ties included. Where the checkpoint keeps 1,000 of more
    scores, those that are not kept are counted as great where they may be: the p-value is then too large by
    1/1,000 at most, never too small.

    Args:
        calibration: of the score.
        scores: ``(...)``; NaN is greater than any, as it is where images are called unknown.

    Returns:
        ``(...)`` in (0, 1]; NaN where the calibration keeps no scores.
    """
    if not calibration.known_scores:
        return np.full(np.shape(scores), np.nan)
    return levels(calibration)[places(calibration, scores)]


def places(calibration: Calibration, scores: Floats) -> NDArray[np.intp]:
    """How many of the kept known scores are less than each of ``(...)``: what its p-value depends on."""
    return np.searchsorted(np.sort(calibration.known_scores), scores)


def levels(calibration: Calibration) -> Floats:
    """The p-value of a score that is greater than ``0 … k`` of the ``k`` kept ones, ``(k + 1,)``, falling."""
    ranks = kept_ranks(calibration.count_known, len(calibration.known_scores))
    as_great = np.append(calibration.count_known, calibration.count_known - ranks - 1)
    levels: Floats = (1 + as_great) / (calibration.count_known + 1)
    return levels


def check_rate(calibration: Calibration, rate: float) -> None:
    """Refuse a false discovery rate that cannot be had.

    Raises:
        UserError: where it is no share, or the calibration keeps no scores of known images.
    """
    if not 0 < rate < 1:
        raise UserError(f"--fdr must lie between 0 and 1, got {rate:g}")
    if not calibration.known_scores:
        given = calibration.method == "fixed"
        why = "its threshold is a number that was given" if given else "an earlier version wrote it"
        raise UserError(
            f"--fdr needs scores of known calibration images, and the checkpoint keeps none, as {why}; run "
            "osr calibrate --ckpt_path CKPT --model.calibration known_quantile"
        )


def false_discovery_threshold(
    calibration: Calibration, counts: NDArray[np.int64], rate: float, greatest: float
) -> float:
    """The threshold that Benjamini and Hochberg's procedure chooses for a batch of images.

    Of the images with a score above it, a share of at most ``rate`` is known, on average over calibration
    sets and batches: conformal p-values of one calibration set depend on each other in the way that the
    procedure allows (Bates, Candès, Lei, Romano and Sesia, Annals of Statistics 2023). As a p-value is a
    function of the score, what it rejects lies above one of the kept known scores.

    Args:
        calibration: of the score, with known scores.
        counts: ``(k + 1,)`` how many images of the batch have each of `places`.
        rate: share in (0, 1).
        greatest: the greatest finite score of the batch, for a threshold that no score is above.
    """
    above = np.cumsum(counts[::-1])[::-1]
    serves = (above > 0) & (levels(calibration) * counts.sum() <= rate * above * (1 + 1e-12))
    kept = np.sort(calibration.known_scores)
    return float(kept[serves.argmax() - 1]) if serves.any() else max(greatest, float(kept[-1]))


def describe_rate(calibration: Calibration, images: int, unknown: int, rate: float, threshold: float) -> str:
    """What Benjamini and Hochberg's procedure made of a batch of images, in a sentence."""
    if unknown:
        return f"of the unknown ones at most {rate:g} are known, on average: score above {threshold:.6g}"
    fewest = max(1, math.ceil(levels(calibration)[-1] * images / rate - 1e-9))
    return (
        f"none is unknown at a false discovery rate of {rate:g}, which needs at least {fewest:,} of "
        f"{images:,} images to look stranger than all of {calibration.count_known:,} known ones"
    )
