"""The per-image table -> the numbers of ``results.json`` (schema_version 2)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from osr_lightning.errors import UserError
from osr_lightning.evaluation.acceptance import BoolArray, FloatArray
from osr_lightning.evaluation.bootstrap import HEADLINE, interval, resample
from osr_lightning.evaluation.measures import MEASURES
from osr_lightning.evaluation.measures.closed_set import aurc, ece
from osr_lightning.evaluation.measures.ranking import auroc, fpr95_known
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.scoring.quantile import conformal_rank

Numbers = dict[str, float | int | None]


def evaluate(table: PredictionTable, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Everything that a test run's table says, ready for ``json.dump``.

    Args:
        table: the test run.
        resamples: bootstrap resamples behind ``intervals``.
        seed: of the bootstrap.

    Returns:
        ``closed_set``; ``open_set`` over all unknown sets pooled; ``unknown``, per set the same keys for
        the known images and that set alone; ``groups``, per group the sets' names and the mean of their
        rates (only where the table has groups); ``scores``, per score ``pooled`` and per ``unknown`` set
        its AUROC and FPR95; ``intervals``, 95% bootstrap intervals ``[low, high]`` of the headline
        figures. What the images leave undefined is ``None``.

    Raises:
        UserError: if a score is NaN for any image.
    """
    _refuse_nan(table)
    everything = np.ones(len(table.label), dtype=bool)
    masks = table.unknown_masks
    unknown = {name: open_set(table, mask) for name, mask in masks.items()}
    results: dict[str, Any] = {
        "closed_set": closed_set(table),
        "open_set": open_set(table, everything),
        "unknown": unknown,
    }
    if table.groups:
        results["groups"] = {
            group: {"sets": list(sets), **_mean([unknown[name] for name in sets])}
            for group, sets in table.groups.items()
        }
    results["scores"] = {
        name: {
            "pooled": _ranking(table, score, everything),
            "unknown": {set_: _ranking(table, score, mask) for set_, mask in masks.items()},
        }
        for name, score in table.scores.items()
    }
    samples = resample(table, resamples, seed)
    results["intervals"] = {name: interval(samples, name) for name in HEADLINE}
    return results


def closed_set(table: PredictionTable) -> dict[str, Any]:
    """The known images alone, none rejected.

    Returns:
        ``count``, ``accuracy``, ``nll`` (mean, nats), ``ece`` (15 bins) and ``aurc`` (of the deciding score);
        ``per_class``, class name -> its ``count``, ``accuracy`` and the share ``rejected``.
    """
    known = table.known
    correct = (table.predicted_class == table.label)[known]
    count = int(known.sum())
    nll = float(table.nll[known].mean()) if count else math.nan
    return {
        "count": count,
        "accuracy": float(correct.mean()) if count else None,
        "nll": nll if math.isfinite(nll) else None,  # JSON has no infinity
        "ece": ece(table.confidence[known], correct),
        "aurc": aurc(table.score[known], correct),
        "per_class": _by_class(table),
    }


def open_set(table: PredictionTable, mask: BoolArray) -> Numbers:
    """Known against unknown on the images of ``mask``.

    Args:
        table: the test run.
        mask: ``(N,)`` the images that count.

    Returns:
        The counts, then every measure of ``MEASURES``.
    """
    outcomes = Outcomes.of(table, mask)
    return {
        "count_known": int((~outcomes.unknown).sum()),
        "count_unknown": int(outcomes.unknown.sum()),
        **{name: measure.take(outcomes) for name, measure in MEASURES.items()},
    }


def achieved(table: PredictionTable, alpha: float, calibration_images: int) -> Numbers | None:
    """How the promise of a ``known_quantile`` threshold turned out on the test.

    The promise, a rejection probability of at most ``alpha``, is one on average over calibration sets.
    For one set of ``n`` images the probability that the threshold really has is ``Beta(n + 1 - k, k)``
    distributed, ``k = ceil((n + 1)(1 - alpha))``, and the number of rejected among ``m`` test images
    beta-binomially (Angelopoulos & Bates 2023, section 3.2).

    Args:
        table: the test run.
        alpha: the target.
        calibration_images: ``n``.

    Returns:
        ``known_rejected``, the share of the known test images, with its exact 95% interval
        ``low``, ``high`` (Clopper & Pearson 1934), and ``bound``, which the share stays within for 95 of
        100 calibration and test sets if all are exchangeable; ``None`` without known images, or where
        ``n`` was too small for any threshold.
    """
    from scipy.stats import betabinom, binomtest

    count, rank = int(table.known.sum()), conformal_rank(calibration_images, alpha)
    if not count or rank > calibration_images:
        return None
    rejected = int(table.rejected[table.known].sum())
    interval_95 = binomtest(rejected, count).proportion_ci()
    return {
        "known_rejected": rejected / count,
        "low": float(interval_95.low),
        "high": float(interval_95.high),
        "bound": float(betabinom.ppf(0.95, count, calibration_images + 1 - rank, rank)) / count,
    }


def _by_class(table: PredictionTable) -> dict[str, Numbers]:
    """Class name -> the numbers of its images; in one pass over them, as classes may be ten thousand."""
    of = (table.known, table.known & (table.predicted_class == table.label), table.known & table.rejected)
    counts = [np.bincount(table.label[mask], minlength=table.num_classes).tolist() for mask in of]
    return {
        name: {
            "count": count,
            "accuracy": right / count if count else None,
            "rejected": rejected / count if count else None,
        }
        for name, count, right, rejected in zip(table.class_names, *counts, strict=True)
    }


def _ranking(table: PredictionTable, score: FloatArray, mask: BoolArray) -> Numbers:
    """Any score in place of the deciding one; the decisions are not its own and do not count."""
    outcomes = replace(Outcomes.of(table, mask), score=score[mask])
    return {"auroc": auroc(outcomes), "fpr95_known": fpr95_known(outcomes)}


def _mean(sets: list[Numbers]) -> Numbers:
    """The mean of every rate over the sets that define it; counts have no mean worth reporting."""
    means: Numbers = {}
    for key in sets[0] if sets else ():
        if not key.startswith("count_"):
            values = [value for numbers in sets if (value := numbers[key]) is not None]
            means[key] = float(np.mean(values)) if values else None
    return means


def _refuse_nan(table: PredictionTable) -> None:
    for name, score in table.scores.items():
        if bad := int(np.isnan(score).sum()):
            raise UserError(
                f"the score '{name}' is NaN for {bad} of {len(score)} test images: the checkpoint's weights "
                "or the images hold NaN; test another checkpoint, or train again with a lower learning rate"
            )
