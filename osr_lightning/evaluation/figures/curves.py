"""Curves over all thresholds, with the threshold in use marked on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osr_lightning.evaluation.acceptance import Acceptance, BoolArray, FloatArray, acceptance
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import (
    GREY,
    label_mark,
    line_style,
    mark,
    new_axes,
    plain,
    spread_x,
)
from osr_lightning.evaluation.measures import decisions, ranking
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.evaluation.prediction_table import PredictionTable

_LINE = np.concatenate([[0], np.geomspace(1e-5, 1, 61)])  # places on a log axis, for lines of few points


@figure(
    caption="Each point of a curve is a threshold; up and to the left is better. Grey: a score that knows "
    "nothing. The horizontal axis is in log steps, down to one image.",
    order=20,
)
def roc(material: Material) -> Figure:
    """Unknown images rejected against known images rejected, per set, and the decisions' own curve."""
    table = material.table
    figure, axes = new_axes()
    axes.plot(_LINE, _LINE, color=GREY, linewidth=0.8)
    lowest = []
    for name, mask, style in _curves(table):
        counts, known, unknown = _counts(table, mask)
        value = ranking.auroc(Outcomes.of(table, mask))
        label = f"{name} ({unknown:,}): AUROC {value:.4f}"
        axes.plot(1 - counts.known / known, 1 - counts.unknown / unknown, label=label, **style)
        chosen = counts.at(table.threshold)
        mark(axes, 1 - chosen.known / known, 1 - chosen.unknown / unknown, style["color"])
        accepting_all_known = np.searchsorted(counts.known, known)
        lowest += [1 - chosen.unknown / unknown, 1 - counts.unknown[accepting_all_known] / unknown]
    # the last curve drawn is that of all unknown images: its decisions are a score of two values
    binary = decisions.binary_auroc(Outcomes.of(table))
    x, y = float(1 - chosen.known / known), float(1 - chosen.unknown / unknown)
    # its three points, and what lies between them, which is no line on a log axis
    places = np.unique([0.0, x, 1.0, *_LINE])
    label = f"0/1 decisions, all: AUROC {binary:.4f}"
    axes.plot(places, np.interp(places, [0, x, 1], [0, y, 1]), color=GREY, linestyle=":", label=label)
    label_mark(axes)
    axes.set(
        title="ROC: unknown against known",
        xlabel=f"known images rejected (share of {known:,})",
        ylabel="unknown images rejected (share)",
    )
    spread_x(axes, known, near=0)
    _zoom(axes, lowest)
    axes.legend(loc="lower right", fontsize="small")
    return figure


@figure(
    caption="Depends on the share of unknown images, which the legend names. The horizontal axis is in log "
    "steps towards 100%, up to one image.",
    order=40,
)
def precision_recall(material: Material) -> Figure:
    """Precision against recall with unknown as the positive class, per unknown set."""
    table = material.table
    figure, axes = new_axes()
    most, lowest = 0, []
    for name, mask, style in _curves(table):
        counts, known, unknown = _counts(table, mask)
        most = max(most, unknown)
        value = ranking.aupr_unknown(Outcomes.of(table, mask))
        share = f"{unknown / (known + unknown):.0%}"
        label = f"{name} ({unknown:,}, a share of {share}): AUPR {value:.4f}"
        recall, precision = _recall_precision(counts, known, unknown)
        axes.plot(recall, precision, label=label, drawstyle="steps-post", **style)
        chosen = _recall_precision(counts.at([table.threshold, np.inf]), known, unknown)
        mark(axes, chosen[0][0], chosen[1][0], style["color"])
        lowest += [chosen[1][0], precision[_rejecting_all_unknown(counts)]]
    label_mark(axes)
    axes.set(
        title="Precision and recall of 'unknown'",
        xlabel="recall: unknown images rejected (share)",
        ylabel="precision: unknown among rejected (share)",
    )
    spread_x(axes, most, near=1)
    _zoom(axes, lowest)
    axes.legend(loc="lower left", fontsize="small")
    return figure


@figure(
    caption="As the ROC, but a known image counts only if its class is right; up and to the left is better. "
    "The horizontal axis is in log steps, down to one image.",
    order=30,
)
def oscr(material: Material) -> Figure:
    """Correct classification rate against false positive rate, per unknown set (Dhamija et al. 2018)."""
    table = material.table
    figure, axes = new_axes()
    most, lowest = 0, []
    for name, mask, style in _curves(table):
        counts, known, unknown = _counts(table, mask)
        most = max(most, unknown)
        value = ranking.oscr(Outcomes.of(table, mask))
        label = f"{name} ({unknown:,}): OSCR {value:.4f}"
        axes.plot(counts.unknown / unknown, counts.correct / known, label=label, **style)
        chosen = counts.at(table.threshold)
        mark(axes, chosen.unknown / unknown, chosen.correct / known, style["color"])
        lowest += [chosen.correct / known, counts.correct[_rejecting_all_unknown(counts)] / known]
    accuracy = float(counts.correct[-1] / known)
    axes.axhline(accuracy, color=GREY, linewidth=0.8, label=f"closed-set accuracy {accuracy:.4f}")
    label_mark(axes)
    axes.set(
        title="Open-set classification rate",
        xlabel="unknown images accepted (share)",
        ylabel=f"known images accepted and right (share of {known:,})",
    )
    spread_x(axes, most, near=0)
    _zoom(axes, lowest)
    axes.legend(loc="lower right", fontsize="small")
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


def _rejecting_all_unknown(counts: Acceptance) -> int:
    """Where the curve accepts as much as it can without an unknown image."""
    return int(np.searchsorted(counts.unknown, 0, side="right")) - 1


def _zoom(axes: Axes, values: Sequence[Any]) -> None:
    """Show the rates from these on, which lie apart, and below them room for the legend."""
    lowest = float(np.nanmin([0.99, *map(float, values)]))
    axes.set_ylim(max(-0.01, 1 - 2 * (1 - lowest)), 1 + 0.01 * min(1, 2 * (1 - lowest)))
