"""Confusion matrices: counts as text, shares of the true class as colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from osr_lightning.evaluation.acceptance import IntArray
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import shorten
from osr_lightning.evaluation.prediction_table import PredictionTable

TEXT_UP_TO = 25  # classes; beyond them a cell is too small for its numbers
DRAWN_UP_TO = 200  # classes; beyond them no name beside a row can be read, and a thousand take 13,000 pixels


def confusion_matrix(
    row: IntArray, column: IntArray, rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """A confusion matrix of any number of rows and columns, drawn at the size that its texts need.

    Args:
        row: ``(N,)`` in ``0 .. len(rows) - 1``, what the images are.
        column: ``(N,)`` in ``0 .. len(columns) - 1``, what they are taken for.
        rows: names of the classes, and of unknown sets.
        columns: names of the answers.
        title: above the figure; the number of images is added.
    """
    height, width = len(rows), len(columns)
    counts = np.bincount(row * width + column, minlength=height * width).reshape(height, width)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = float(np.clip(14 / max(height, width), 0.1, 0.62))  # inches
    labels = [[shorten(name, 26) for name in rows], [shorten(name) for name in columns]]
    font = float(np.clip(cell * 72 * 0.7, 4, 10))
    # a letter is about 0.57 of the font size wide
    beside, below = (max(map(len, names)) * 0.57 * font / 72 for names in labels)
    upright = below < 0.92 * cell
    figure = Figure(
        figsize=(
            max(1.1 * cell * width + beside + 1.5, 4.2),  # with the colour bar
            max(cell * height + (0.2 if upright else below) + 1, 2.6),  # with title and axis label
        ),
        layout="compressed",
    )
    axes = figure.add_subplot()
    # the root makes a few percent of mistakes visible beside a diagonal near 1
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_label("share of the row")
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "25%", "50%", "100%"], fontsize=8)
    axes.set_yticks(range(height), labels[0], fontsize=font)
    axes.set_xticks(range(width), labels[1], rotation=0 if upright else 90, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{title} ({len(row):,} images)", fontsize=11)
    if max(height, width) <= TEXT_UP_TO:
        for at, to in np.argwhere(counts):
            share = shares[at, to]
            axes.text(
                to,
                at,
                f"{counts[at, to]:,}\n{share:.1%}",
                ha="center",
                va="center",
                fontsize=7.5,
                color="white" if share > 0.3 else "black",
            )
    return figure


@figure(caption="The classifier by itself, before anything is rejected.", order=70, wide=True, needs="known")
def closed_confusion(material: Material) -> Figure | None:
    """K x K: the known images by predicted class, none rejected; ``None`` of many classes."""
    table, known = material.table, material.table.known
    if table.num_classes > DRAWN_UP_TO:
        return None
    return confusion_matrix(
        table.label[known],
        table.predicted_class[known],
        table.class_names,
        table.class_names,
        "Known images, none rejected",
    )


@figure(
    caption="Counts, and shares of the row. Below the classes one row for each unknown set; the last column "
    "is 'unknown'.",
    order=50,
    wide=True,
)
def confusion(material: Material) -> Figure | None:
    """(K+U) x (K+1): all images by prediction, ``unknown`` last; the rows of ``U`` unknown sets below.

    ``None`` of many classes.
    """
    table = material.table
    if table.num_classes > DRAWN_UP_TO:
        return None
    row, rows = _with_unknown_sets(table, table.label, table.class_names)
    columns = (*table.class_names, "unknown")
    return confusion_matrix(row, table.prediction, rows, columns, "At the threshold in use")


@figure(caption="The decision known or unknown alone.", order=60)
def binary_confusion(material: Material) -> Figure:
    """(1 + U) x 2: known images, and those of each unknown set, by decision."""
    table = material.table
    row, rows = _with_unknown_sets(table, np.zeros_like(table.label), ("known",))
    answer = table.rejected.astype(np.int64)
    return confusion_matrix(row, answer, rows, ("known", "unknown"), "Known or unknown?")


def _with_unknown_sets(
    table: PredictionTable, known: IntArray, names: Sequence[str]
) -> tuple[IntArray, list[str]]:
    """Each image's row: of known ones as given, then one for each unknown set; and the names of the rows."""
    # images of unknown sets only: known ones have rows of their own
    sets = np.unique(table.source[~table.known])
    row = np.where(table.known, known, len(names) + np.searchsorted(sets, table.source))
    unknown = [f"unknown: {table.source_names[index]}" for index in sets]
    return row, [*names, *(unknown if len(unknown) > 1 else ["unknown"])]
