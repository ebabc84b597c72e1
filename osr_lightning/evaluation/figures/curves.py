"""Curves over all thresholds, with the threshold in use marked on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from osr_lightning.evaluation.acceptance import Acceptance, FloatArray, acceptance
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import (
    GREY,
    NotedFigure,
    label_mark,
    line_style,
    mark,
    new_axes,
    shorten,
    spread_x,
)
from osr_lightning.evaluation.measures import decisions, ranking
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.evaluation.prediction_table import PredictionTable

CORNER = 0.1  # curves that all reach 90% within this of the better end are drawn in log steps
_HEIGHT = 5.4  # inches, with the legend below
_LINE = np.concatenate([[0], np.geomspace(1e-5, 1, 61)])  # places on a log axis, for lines of few points


@figure(
    caption="Each point of a curve is a threshold; up and to the left is better. Grey: a score that knows "
    "nothing.",
    order=20,
)
def roc(material: Material) -> Figure:
    """Unknown images rejected against known images rejected, per set, and the decisions' own curve."""
    table = material.table
    figure, axes = new_axes(height=_HEIGHT)
    axes.plot(_LINE, _LINE, color=GREY, linewidth=0.8)
    lowest = []
    for name, style, outcomes, counts, known, unknown in _curves(table):
        value = ranking.auroc(outcomes)
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
    axes.set(title="ROC: unknown against known", ylabel="unknown images rejected (share)")
    log, label = _in_corner(table), f"known images rejected (share of {known:,}"
    return _framed(figure, axes, label, known, near=0, log=log, lowest=lowest if log else [0])


@figure(
    caption="Depends on the share of unknown images, which the legend names; up and to the right is better.",
    order=40,
)
def precision_recall(material: Material) -> Figure:
    """Precision against recall with unknown as the positive class, per unknown set."""
    table = material.table
    figure, axes = new_axes(height=_HEIGHT)
    most, lowest, log = 0, [], _in_corner(table)
    for name, style, outcomes, counts, known, unknown in _curves(table):
        most = max(most, unknown)
        value = ranking.aupr_unknown(outcomes)
        share = f"{unknown / (known + unknown):.0%}"
        label = f"{name} ({unknown:,}, a share of {share}): AUPR {value:.4f}"
        recall, precision = _recall_precision(counts, known, unknown)
        axes.plot(recall, precision, label=label, drawstyle="steps-post", **style)
        chosen = _recall_precision(counts.at([table.threshold, np.inf]), known, unknown)
        mark(axes, chosen[0][0], chosen[1][0], style["color"])
        lowest += [chosen[1][0], precision[_rejecting_all_unknown(counts)]]
        if not log:  # below a recall of 5% a handful of images makes it jump
            lowest.append(np.nanmin(precision[recall >= 0.05]))
    axes.set(title="Precision and recall of 'unknown'", ylabel="precision: unknown among rejected (share)")
    label = "recall: unknown images rejected (share"
    return _framed(figure, axes, label, most, near=1, log=log, lowest=lowest)


@figure(
    caption="As the ROC, but a known image counts only if its class is right; up and to the left is better.",
    order=30,
)
def oscr(material: Material) -> Figure:
    """Correct classification rate against false positive rate, per unknown set (Dhamija et al. 2018)."""
    table = material.table
    figure, axes = new_axes(height=_HEIGHT)
    most, lowest = 0, []
    for name, style, outcomes, counts, known, unknown in _curves(table):
        most = max(most, unknown)
        value = ranking.oscr(outcomes)
        label = f"{name} ({unknown:,}): OSCR {value:.4f}"
        axes.plot(counts.unknown / unknown, counts.correct / known, label=label, **style)
        chosen = counts.at(table.threshold)
        mark(axes, chosen.unknown / unknown, chosen.correct / known, style["color"])
        lowest += [chosen.correct / known, counts.correct[_rejecting_all_unknown(counts)] / known]
    accuracy = float(counts.correct[-1] / known)
    axes.axhline(accuracy, color=GREY, linewidth=0.8, label=f"closed-set accuracy {accuracy:.4f}")
    right = f"known images accepted and right (share of {known:,})"
    axes.set(title="Open-set classification rate", ylabel=right)
    log, label = _in_corner(table), "unknown images accepted (share"
    return _framed(figure, axes, label, most, near=0, log=log, lowest=lowest if log else [0])


def _curves(
    table: PredictionTable,
) -> Iterator[tuple[str, dict[str, Any], Outcomes, Acceptance, int, int]]:
    """The curves: of the unknown sets that have images, then of all together in black.

    Yields:
        Name, style, outcomes, their acceptance counts, and how many known and unknown images they are.
    """
    unknown = ~table.known
    sets = [(name, mask) for name, mask in table.unknown_masks.items() if (mask & unknown).any()]
    curves = [(shorten(name, 30), mask, line_style(index)) for index, (name, mask) in enumerate(sets)]
    everything = (
        "all unknown",
        np.ones(len(unknown), dtype=bool),
        {"color": "black", "linewidth": 2.0, "zorder": 1.9},
    )
    for name, mask, style in [*curves, everything] if len(curves) != 1 else curves:
        chosen = Outcomes.of(table, mask)
        counts = acceptance(chosen.score, chosen.unknown, chosen.correct)
        yield name, style, chosen, counts, int(counts.known[-1]), int(counts.unknown[-1])


def _recall_precision(counts: Acceptance, known: int, unknown: int) -> tuple[FloatArray, FloatArray]:
    """Both (G,), leaving out the last threshold, which rejects nothing and has no precision."""
    hits = (unknown - counts.unknown)[:-1]
    rejected = hits + (known - counts.known)[:-1]
    return hits / unknown, np.divide(hits, rejected, out=np.full(len(hits), np.nan), where=rejected > 0)


def _rejecting_all_unknown(counts: Acceptance) -> int:
    """Where the curve accepts as much as it can without an unknown image."""
    return int(np.searchsorted(counts.unknown, 0, side="right")) - 1


def _in_corner(table: PredictionTable) -> bool:
    """Whether log steps show what differs: for a tenth of the known images nine in ten unknown are rejected.

    Elsewhere log steps bend any curve, chance among them, into a good one's shape.
    """
    for *_, counts, known, unknown in _curves(table):
        # thresholds ascend, so both rates fall
        rejected = np.interp(CORNER, 1 - counts.known[::-1] / known, 1 - counts.unknown[::-1] / unknown)
        if rejected < 1 - CORNER:
            return False
    return True


def _framed(
    figure: NotedFigure,
    axes: Axes,
    x: str,
    images: int,
    *,
    near: int,
    log: bool,
    lowest: Sequence[Any],
) -> NotedFigure:
    """The figure with its legend, and with both axes around its curves.

    The horizontal axis is in log or in equal steps, which is said below the figure.

    Args:
        figure: whose note it is.
        axes: with rates on both axes.
        x: the label of the horizontal axis, the bracket left open.
        images: of which the rates on that are shares.
        near: 0 or 1, the end at which good curves have their corner.
        log: see `_in_corner`.
        lowest: rates, from the least of which on the vertical axis is shown.
    """
    label_mark(axes)
    # under the axes, where it hides neither a curve nor a mark
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize="small")
    least = float(np.nanmin([0.99, *map(float, lowest)]))
    margin = 0.05 * (1 - least)
    axes.set_ylim(max(-0.01, least - margin), 1 + min(margin, 0.01))
    if not log:
        axes.set_xlabel(f"{x})")
        axes.set_xlim(-0.01, 1.01)
        axes.xaxis.set_major_formatter(PercentFormatter(1))  # as `spread_x` does
        figure.note = "The horizontal axis is in equal steps."
        return figure
    axes.set_xlabel(f"{x}, log steps)")
    spread_x(axes, images, near=near)
    figure.note = (
        f"The horizontal axis is in log steps towards {'0' if near == 0 else '100%'}, up to one image: of "
        "every unknown set nine tenths can be rejected with a tenth of the known images."
    )
    return figure
