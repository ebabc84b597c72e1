"""Arrays -> matplotlib figures, nothing else. Importing this loads matplotlib: do it only to draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from osr_lightning.evaluation.embedding import tsne_embedding
from osr_lightning.evaluation.figures.curves import (
    oscr_curve,
    precision_recall,
    reliability,
    risk_coverage,
    roc,
)
from osr_lightning.evaluation.figures.images import confident_mistakes, gallery, score_histograms, tsne
from osr_lightning.evaluation.figures.matrices import (
    binary_confusion,
    closed_confusion,
    confusion,
    open_confusion,
)
from osr_lightning.evaluation.figures.training import learning_curves, optimization_history, read_metrics
from osr_lightning.evaluation.table import PredictionTable

__all__ = [
    "all_figures",
    "binary_confusion",
    "closed_confusion",
    "confident_mistakes",
    "confusion",
    "gallery",
    "learning_curves",
    "open_confusion",
    "optimization_history",
    "oscr_curve",
    "precision_recall",
    "read_metrics",
    "reliability",
    "risk_coverage",
    "roc",
    "score_histograms",
    "tsne",
]


def all_figures(
    table: PredictionTable,
    *,
    images: Callable[[NDArray[np.int64]], NDArray[np.uint8]] | None = None,
    metrics: Path | None = None,
    trials: Sequence[tuple[float, float]] = (),
    seed: int = 0,
    tsne_points: int = 2000,
) -> dict[str, Figure]:
    """Every figure that the run has the data for, in the order of the report.

    Args:
        table: the test run.
        images: rows of the table ``(n,)`` -> their images ``(n, C, H, W)`` uint8; ``None`` for no gallery.
        metrics: the ``metrics.csv`` of the training run; none if the file does not exist.
        trials: ``(threshold, value)`` of the threshold search.
        seed: of the embedding.
        tsne_points: images to embed; 0 for no embedding.

    Returns:
        File name without ending -> figure. Without known images only the training's figures, without
        unknown images only the closed set's.
    """
    figures: dict[str, Figure] = {}
    known, unknown = bool(table.known.any()), bool((~table.known).any())
    if known and unknown:
        figures |= {
            "score_histograms": score_histograms(table),
            "roc": roc(table),
            "precision_recall": precision_recall(table),
            "oscr": oscr_curve(table),
            "binary_confusion": binary_confusion(table),
            "confusion": open_confusion(table),
        }
    if known:
        figures |= {
            "closed_confusion": closed_confusion(table),
            "reliability": reliability(table),
            "risk_coverage": risk_coverage(table),
        }
        if not unknown:
            figures["score_histograms"] = score_histograms(table)
        indices, points = tsne_embedding(table.logits, seed, tsne_points)
        if len(indices):
            figures["tsne"] = tsne(table, indices, points)
        mistakes = confident_mistakes(table)
        if images is not None and mistakes:
            figures["gallery"] = gallery(table, mistakes, images(np.concatenate([*mistakes.values()])))
    if metrics is not None and metrics.is_file() and (curves := read_metrics(metrics)):
        figures["learning_curves"] = learning_curves(curves)
    if trials:
        figures["optimization_history"] = optimization_history(trials)
    return figures
