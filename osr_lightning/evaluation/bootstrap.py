"""Bootstrap of the headline measures: how far a figure would move with another sample of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from osr_lightning.evaluation.acceptance import Acceptance, FloatArray, IntArray, area
from osr_lightning.evaluation.measures.ranking import share95
from osr_lightning.evaluation.prediction_table import PredictionTable

HEADLINE = ("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc", "oscr", "fpr95_known")
# Draws held at once: bounds the memory at some tens of MB whatever the number of images.
CHUNK = 2_000_000


def resample(table: PredictionTable, resamples: int = 1000, seed: int = 0) -> dict[str, FloatArray]:
    """Recompute the headline measures on images redrawn with replacement.

    Known and unknown images are redrawn apart (stratified), so their shares stay as they are. The draws
    depend on nothing but ``seed`` and the two counts: tables of the same images in the same order get
    the same draws, and the differences of their results are a paired bootstrap.

    Args:
        table: the test run.
        resamples: number of redrawn sets, ``R``.
        seed: of the draws.

    Returns:
        Measure -> ``(R,)``, for those of ``HEADLINE`` that the table's images define.
    """
    known, unknown = np.flatnonzero(table.known), np.flatnonzero(~table.known)
    if not len(known):
        return {}
    threshold, group = np.unique(table.score, return_inverse=True)
    correct = table.predicted_class == table.label
    rng = np.random.default_rng(seed)
    parts: list[dict[str, FloatArray]] = []
    rows_at_once = max(1, CHUNK // len(table.label))
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        drawn_known = known[rng.integers(len(known), size=(rows, len(known)))]
        drawn_unknown = unknown[rng.integers(max(len(unknown), 1), size=(rows, len(unknown)))]
        counts = Acceptance(
            threshold,
            _cumulated(group[drawn_known], len(threshold)),
            # a wrongly classified image goes one past the last group, which is cut off
            _cumulated(np.where(correct, group, len(threshold))[drawn_known], len(threshold)),
            _cumulated(group[drawn_unknown], len(threshold)),
        )
        parts.append(_measures(counts, table.threshold, len(known), len(unknown)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def interval(samples: Mapping[str, FloatArray], name: str) -> list[float] | None:
    """The 95% percentile interval ``[low, high]`` of one measure, ``None`` where it is undefined."""
    values = samples.get(name)
    return None if values is None else [float(v) for v in np.quantile(values, [0.025, 0.975])]


def _cumulated(groups: IntArray, num_groups: int) -> IntArray:
    """Drawn groups (R, n) -> cumulated counts (R, G + 1), beginning with 0."""
    rows = len(groups)
    # one bincount for all rows: row r counts into its own stretch of G + 1 cells
    cells = groups + np.arange(rows)[:, None] * (num_groups + 1)
    counts = np.bincount(cells.ravel(), minlength=rows * (num_groups + 1)).reshape(rows, num_groups + 1)
    return np.pad(np.cumsum(counts[:, :-1], axis=1), ((0, 0), (1, 0)))


def _measures(counts: Acceptance, threshold: float, known: int, unknown: int) -> dict[str, FloatArray]:
    """The headline measures of R cumulated counts, each (R,)."""
    accepted = counts.at(threshold)
    measures = {"known_accuracy": accepted.correct / known}
    if unknown:
        right = accepted.correct + (unknown - accepted.unknown)
        enough = np.argmax(counts.known >= share95(known), axis=1)
        rows = np.arange(len(enough))
        measures |= {
            "unknown_accuracy": 1 - accepted.unknown / unknown,
            "total_accuracy": right / (known + unknown),
            "auroc": area(counts.unknown, counts.known) / (known * unknown),
            "oscr": area(counts.unknown, counts.correct) / (known * unknown),
            "fpr95_known": counts.unknown[rows, enough] / unknown,
        }
    return measures
