"""Curves over all thresholds, with the threshold in use marked on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from osr_lightning.evaluation.acceptance import Acceptance, BoolArray, FloatArray, acceptance
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import (
    GREY,
    KNOWN_COLOR,
    dress,
    line_style,
    new_axes,
    plain,
    unit_square,
)
from osr_lightning.evaluation.measures import closed_set, decisions, ranking
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.evaluation.table import PredictionTable


@figure(caption="Each point of a curve is a threshold; up and to the left is better.", order=20)
def roc(material: Material) -> Figure:
    """Unknown images rejected against known images rejected, per set, and the decisions' own curve."""
    table = material.table
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for name, mask, style in _curves(table):
        counts, known, unknown = _counts(table, mask)
        value = ranking.auroc(Outcomes.of(table, mask))
        label = f"{name} ({unknown:,}): AUROC {value:.3f}"
        axes.plot(1 - counts.known / known, 1 - counts.unknown / unknown, label=label, **style)
        chosen = counts.at(table.threshold)
        _mark(axes, 1 - chosen.known / known, 1 - chosen.unknown / unknown, style["color"])
    # the last curve drawn is that of all unknown images: its decisions are a score of two values
    binary = decisions.binary_auroc(Outcomes.of(table))
    x, y = float(1 - chosen.known / known), float(1 - chosen.unknown / unknown)
    axes.plot(
        [0, x, 1], [0, y, 1], color=GREY, linestyle=":", label=f"0/1 decisions, all: AUROC {binary:.3f}"
    )
    _label_mark(axes)
    axes.set(
        title="ROC: unknown against known",
        xlabel=f"known images rejected (share of {known:,})",
        ylabel="unknown images rejected (share)",
    )
    unit_square(axes)
    axes.legend(loc="lower right", fontsize="small")
    return figure


@figure(caption="Depends on the share of unknown images, which the legend names.", order=40)
def precision_recall(material: Material) -> Figure:
    """Precision against recall with unknown as the positive class, per unknown set."""
    table = material.table
    figure, axes = new_axes()
    for name, mask, style in _curves(table):
        counts, known, unknown = _counts(table, mask)
        value = ranking.aupr_unknown(Outcomes.of(table, mask))
        share = f"{unknown / (known + unknown):.0%}"
        label = f"{name} ({unknown:,}, a share of {share}): AUPR {value:.3f}"
        recall, precision = _recall_precision(counts, known, unknown)
        axes.plot(recall, precision, label=label, drawstyle="steps-post", **style)
        chosen = _recall_precision(counts.at([table.threshold, np.inf]), known, unknown)
        _mark(axes, chosen[0][0], chosen[1][0], style["color"])
    _label_mark(axes)
    axes.set(
        title="Precision and recall of 'unknown'",
        xlabel="recall: unknown images rejected (share)",
        ylabel="precision: unknown among rejected (share)",
    )
    unit_square(axes)
    axes.legend(loc="lower left", fontsize="small")
    return figure


@figure(
    caption="As the ROC, but a known image counts only if its class is right; up and to the left is better.",
    order=30,
)
def oscr(material: Material) -> Figure:
    """Correct classification rate against false positive rate, per unknown set (Dhamija et al. 2018)."""
    table = material.table
    figure, axes = new_axes()
    for name, mask, style in _curves(table):
        counts, known, unknown = _counts(table, mask)
        value = ranking.oscr(Outcomes.of(table, mask))
        label = f"{name} ({unknown:,}): OSCR {value:.3f}"
        axes.plot(counts.unknown / unknown, counts.correct / known, label=label, **style)
        chosen = counts.at(table.threshold)
        _mark(axes, chosen.unknown / unknown, chosen.correct / known, style["color"])
    accuracy = float(counts.correct[-1] / known)
    axes.axhline(accuracy, color=GREY, linewidth=0.8, label=f"closed-set accuracy {accuracy:.3f}")
    _label_mark(axes)
    axes.set(
        title="Open-set classification rate",
        xlabel="unknown images accepted (share)",
        ylabel=f"known images accepted and right (share of {known:,})",
    )
    unit_square(axes)
    axes.legend(loc="lower right", fontsize="small")
    return figure


@figure(
    caption="How much rejecting the highest scores lowers the error among the rest.", order=90, needs="known"
)
def risk_coverage(material: Material) -> Figure:
    """Error rate among the accepted known images against the share accepted."""
    table = material.table
    figure, axes = new_axes()
    known = table.known
    score, right = table.score[known], (table.predicted_class == table.label)[known]
    coverage, risk = closed_set.risk_coverage(score, right)
    label = f"known images ({len(score):,}): AURC {closed_set.aurc(score, right):.4f}"
    axes.plot(coverage, risk, color=KNOWN_COLOR, label=label)
    if accepted := int((score <= table.threshold).sum()):
        _mark(axes, coverage[accepted - 1], risk[accepted - 1], KNOWN_COLOR)
        _label_mark(axes)
    axes.set(
        title="Risk and coverage of the known images",
        xlabel="coverage: known images accepted (share)",
        ylabel="risk: wrong class among accepted (share)",
        xlim=(-0.01, 1.01),
    )
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize="small")
    return figure


@figure(caption="Bars above the diagonal: less confident than right; below: more.", order=80, needs="known")
def reliability(material: Material, bins: int = 15) -> Figure:
    """Accuracy against confidence of the known images, and how many images have which confidence."""
    table = material.table
    known = table.known
    confidence, right = table.confidence[known], (table.predicted_class == table.label)[known]
    error = closed_set.ece(confidence, right, bins)
    count, mean_confidence, accuracy = closed_set.calibration_bins(confidence, right, bins)
    filled = count > 0
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[3, 1])
    top = dress(figure.add_subplot(grid[0]))
    bottom = dress(figure.add_subplot(grid[1], sharex=top))
    left, width = np.arange(bins) / bins, 1 / bins
    top.bar(left[filled], accuracy[filled], width, align="edge", color=KNOWN_COLOR, edgecolor="white")
    top.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfect calibration")
    top.plot(
        mean_confidence[filled],
        accuracy[filled],
        "D",
        color="#E69F00",
        markeredgecolor="black",
        label="bin mean",
    )
    top.set(
        title=f"Reliability of {len(confidence):,} known images: ECE {error:.3f}",
        ylabel="accuracy (share right)",
    )
    unit_square(top)
    top.tick_params(labelbottom=False)
    top.legend(loc="upper left", fontsize="small")
    bottom.bar(left, count, width, align="edge", color=GREY, edgecolor="white")
    bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="images", yscale="symlog")
    return figure


def _curves(table: PredictionTable) -> list[tuple[str, BoolArray, dict[str, Any]]]:
    """Name, images and style of each curve: the unknown sets that have images, then all together in black."""
    unknown = ~table.known
    sets = [(name, mask) for name, mask in table.unknown_masks.items() if (mask & unknown).any()]
    curves = [(plain(name), mask, line_style(index)) for index, (name, mask) in enumerate(sets)]
    everything = (
        "all unknown",
        np.ones(len(unknown), dtype=bool),
        {"color": "black", "linewidth": 2.0, "zorder": 1.9},
    )
    return [*curves, everything] if len(curves) != 1 else curves


def _counts(table: PredictionTable, mask: BoolArray) -> tuple[Acceptance, int, int]:
    """Acceptance counts of some images, and how many known and unknown images they are."""
    chosen = Outcomes.of(table, mask)
    known, unknown = int((~chosen.unknown).sum()), int(chosen.unknown.sum())
    return acceptance(chosen.score, chosen.unknown, chosen.correct), known, unknown


def _recall_precision(counts: Acceptance, known: int, unknown: int) -> tuple[FloatArray, FloatArray]:
    """Both (G,), leaving out the last threshold, which rejects nothing and has no precision."""
    hits = (unknown - counts.unknown)[:-1]
    rejected = hits + (known - counts.known)[:-1]
    return hits / unknown, np.divide(hits, rejected, out=np.full(len(hits), np.nan), where=rejected > 0)


def _mark(axes: Axes, x: ArrayLike, y: ArrayLike, color: str) -> None:
    axes.plot(
        np.ravel(x),
        np.ravel(y),
        "o",
        color=color,
        markeredgecolor="black",
        markersize=7,
        zorder=5,
        clip_on=False,
    )


def _label_mark(axes: Axes) -> None:
    """One legend entry for all the marks."""
    label = "at the threshold in use"
    axes.plot([], [], "o", color="white", markeredgecolor="black", markersize=7, label=label)
