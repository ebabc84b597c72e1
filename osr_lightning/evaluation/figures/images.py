"""Figures that show images one by one: the score histograms, the embedding and the gallery of mistakes."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from osr_lightning.evaluation.acceptance import FloatArray, IntArray
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import (
    COLORS,
    KNOWN_COLOR,
    ON_ANY,
    SCORE_LABEL,
    line_style,
    new_axes,
    plain,
    shorten,
)
from osr_lightning.evaluation.mistakes import confident_mistakes
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.places import without_folders

LEGEND_UP_TO = 20  # classes; more are told apart by a colour scale
_MARKERS = ("o", "s", "^", "D", "v", "P", "*")  # of classes, so that with colours a pair repeats after 42


@figure(
    caption="The further apart known and unknown images lie, the better any threshold can do.",
    order=10,
    needs="known",
)
def score_histograms(material: Material, bins: int = 60) -> Figure:
    """Scores of the known images against each unknown set's, with the threshold drawn in."""
    table = material.table
    figure, axes = new_axes()
    edges, log = bin_edges(table.score, table.threshold, bins)
    for index, name in enumerate(table.source_names):
        score = table.score[table.source == index]
        if not len(score):
            continue
        # what lies outside the axis is counted in its last bin
        counts, _ = np.histogram(np.clip(score, edges[0], edges[-1]), edges)
        label = f"{plain(without_folders(name))} ({'known' if index == 0 else 'unknown'}, {len(score):,})"
        if index == 0:
            axes.stairs(counts / len(score), edges, fill=True, color=KNOWN_COLOR, alpha=0.35, label=label)
            axes.stairs(counts / len(score), edges, color=KNOWN_COLOR, linewidth=1.2)
        else:
            axes.stairs(counts / len(score), edges, linewidth=1.6, label=label, **line_style(index - 1))
    label = f"threshold {table.threshold:.4g}"
    if edges[0] <= table.threshold <= edges[-1]:
        axes.axvline(table.threshold, color="black", linewidth=1.5, label=label)
    else:
        axes.plot([], [], color="black", linewidth=1.5, label=f"{label} (off this axis)")
    axes.set(
        title="Scores of the test images",
        xlabel=SCORE_LABEL.format(table.score_name),
        ylabel="share of the set's images per bin",
        xscale="log" if log else "linear",
    )
    axes.legend(fontsize="small")
    return figure


@figure(
    caption="Images with similar outputs lie close together; each cross is an unknown image. No more unknown "
    "images are drawn than known ones, as many of each set.",
    order=100,
    wide=True,
    needs="known",
)
def tsne(material: Material) -> Figure | None:
    """The logits embedded in the plane; ``None`` where there are too few or they are all equal."""
    if material.embedding is None:
        return None
    indices, points = material.embedding()
    return embedded(material.table, indices, points) if len(indices) else None


def embedded(table: PredictionTable, indices: IntArray, points: NDArray[np.float32]) -> Figure:
    """The embedded images: known ones coloured by class, unknown ones black.

    Args:
        table: the test run.
        indices: ``(n,)`` rows of the table.
        points: ``(n, 2)`` their places, e.g. of `osr_lightning.evaluation.embedding.tsne_embedding`.
    """
    figure, axes = new_axes(8.2, 6)
    label, known, size = table.label[indices], table.known[indices], table.num_classes
    x, y = points.T
    few = size <= LEGEND_UP_TO
    if few:
        for index, name in enumerate(table.class_names):
            mask = label == index
            title = f"{shorten(name)} ({mask.sum():,})"
            color, marker = COLORS[index % len(COLORS)], _MARKERS[index % len(_MARKERS)]
            axes.scatter(
                x[mask], y[mask], s=18, linewidths=0, alpha=0.8, label=title, color=color, marker=marker
            )
    elif known.any():
        dots = axes.scatter(
            x[known],
            y[known],
            c=label[known],
            cmap="turbo",
            vmin=0,
            vmax=size - 1,
            s=12,
            linewidths=0,
        )
        figure.colorbar(
            dots, ax=axes, shrink=0.8, label=f"known class, 0 to {size - 1} ({known.sum():,} images)"
        )
    if not known.all():
        name = f"unknown ({(~known).sum():,})"
        axes.scatter(x[~known], y[~known], s=16, linewidths=0.9, color="black", marker="x", label=name)
    axes.set(title=f"t-SNE of the logits of {len(indices):,} images", xticks=[], yticks=[])
    axes.set(xlabel="first dimension (no unit)", ylabel="second dimension (no unit)")
    if few:
        figure.legend(loc="outside right upper", fontsize="small")
    elif not known.all():
        axes.legend(fontsize="small")
    return figure


@figure(
    caption="The mistakes that the score was surest of, with the true class or set and the answer given.",
    order=110,
    wide=True,
    plot=False,
    needs="known",
)
def gallery(material: Material) -> Figure | None:
    """The worst mistakes with what they are, what they were taken for, and their score.

    ``None`` without images, which are grey (C is 1) or RGB (3), or without mistakes.
    """
    table, mistakes = material.table, confident_mistakes(material.table)
    if material.images is None or not mistakes:
        return None
    images = material.images(np.concatenate([*mistakes.values()]))
    columns = max(len(rows) for rows in mistakes.values())
    width = max(1.45 * columns, 5.5)
    # pictures keep their colours on a dark page, so the text has to do for both
    figure = Figure(figsize=(width, 2.3 * len(mistakes)), layout="constrained", facecolor="none")
    names = (*table.class_names, "unknown")
    remaining = iter(images)
    for part, (kind, rows) in zip(
        np.atleast_1d(np.asarray(figure.subfigures(len(mistakes), 1), dtype=object)),
        mistakes.items(),
        strict=True,
    ):
        part.set_facecolor("none")
        part.suptitle(kind, fontsize=11, color=ON_ANY)
        for axes, row in zip(part.subplots(1, columns, squeeze=False)[0], rows, strict=False):
            image = np.moveaxis(next(remaining), 0, -1)
            axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
            true = names[table.label[row]] if table.known[row] else table.source_names[table.source[row]]
            axes.set_anchor("N")
            caption = f"{shorten(true, 14)}\nas {shorten(names[table.prediction[row]], 14)}"
            axes.set_xlabel(f"{caption}\nscore {table.score[row]:.3g}", fontsize=8, color=ON_ANY)
        for axes in part.axes:
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(axes.has_data())
    return figure


def bin_edges(score: FloatArray, threshold: float, bins: int) -> tuple[FloatArray, bool]:
    """Edges (bins + 1,) over nearly all scores and, where near, the threshold; and whether in log steps."""
    finite = score[np.isfinite(score)]
    if not len(finite):
        return np.linspace(0, 1, bins + 1), False
    low, middle, high = np.quantile(finite, [0.001, 0.5, 0.999])
    # a probability or an entropy crowds at 0: on a linear axis all known images would be one bar
    log = bool(finite.min() >= 0 and high > 0 and middle < 0.05 * high)
    if log:
        # half the float64 precision of 1 - p: smaller values are rounding
        low = max(low, high * 1e-16, 1e-16)
        if low / 10 <= threshold <= high * 10:
            low, high = min(low, threshold / 1.2), max(high, threshold * 1.2)
        return np.geomspace(low, max(high, 2 * low), bins + 1), True
    if low - (high - low) <= threshold <= high + (high - low):
        low, high = min(low, threshold), max(high, threshold)
    margin = 0.02 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1), False
