"""Confusion matrices: counts as text, shares of the true class as colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from osr_lightning.evaluation.acceptance import IntArray
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import colormap, shorten

TEXT_UP_TO = 25  # classes; beyond them a cell is too small for its numbers


def confusion_matrix(label: IntArray, prediction: IntArray, names: Sequence[str], title: str) -> Figure:
    """The confusion matrix of any number of classes.

    Args:
        label: ``(N,)`` in ``0 .. len(names) - 1``, the rows.
        prediction: ``(N,)`` in ``0 .. len(names) - 1``, the columns.
        names: of the classes; with ``unknown`` as the last one it is the open-set matrix.
        title: above the figure; the number of images is added.
    """
    size = len(names)
    counts = np.bincount(label * size + prediction, minlength=size * size).reshape(size, size)
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    inches = float(np.clip(2.5 + 0.62 * size, 4.5, 14))
    figure = Figure(figsize=(inches + 0.9, inches), layout="compressed")
    axes = figure.add_subplot()
    # the root makes a few percent of mistakes visible beside a diagonal near 1
    image = axes.imshow(shares, cmap=colormap("Blues"), norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_label("share of the true class (its row)")
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "25%", "50%", "100%"])
    font = float(np.clip(9.5 * inches * 5 / size, 4, 10))
    labels = [shorten(name) for name in names]
    # a letter is about 0.6 of the font size wide, a cell about 0.8 of the figure over the classes
    upright = max(map(len, labels)) * 0.6 * font / 72 < 0.8 * inches / size
    axes.set_xticks(range(size), labels, rotation=0 if upright else 90, fontsize=font)
    axes.set_yticks(range(size), labels, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true", title=f"{title} ({len(label):,} images)")
    if size <= TEXT_UP_TO:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}\n{share:.1%}",
                ha="center",
                va="center",
                fontsize=7.5 if size > 2 else 12,
                color="white" if share > 0.3 else "black",
            )
    return figure


@figure(caption="The classifier by itself, before anything is rejected.", order=70, wide=True, needs="known")
def closed_confusion(material: Material) -> Figure:
    """K x K: the known images by predicted class, none rejected."""
    table, known = material.table, material.table.known
    return confusion_matrix(
        table.label[known], table.predicted_class[known], table.class_names, "Known images, none rejected"
    )


@figure(caption="Counts, and shares of the row. Last row and column: unknown.", order=50, wide=True)
def confusion(material: Material) -> Figure:
    """(K+1) x (K+1): all images by prediction, ``unknown`` last."""
    table = material.table
    return confusion_matrix(
        table.label, table.prediction, (*table.class_names, "unknown"), "At the threshold in use"
    )


@figure(caption="The decision known or unknown alone.", order=60)
def binary_confusion(material: Material) -> Figure:
    """2 x 2: known and unknown images by decision."""
    table = material.table
    unknown, rejected = (~table.known).astype(np.int64), table.rejected.astype(np.int64)
    return confusion_matrix(unknown, rejected, ("known", "unknown"), "Known or unknown?")
