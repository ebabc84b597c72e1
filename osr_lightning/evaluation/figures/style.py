"""The look that the figures share: readable in print, in grey and to colour-blind readers."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from osr_lightning.errors import one_line
from osr_lightning.evaluation.acceptance import FloatArray

# Okabe and Ito (2008), without black (kept for unknown images and sums) and yellow (too pale on white)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
KNOWN_COLOR, GREY = COLORS[0], "#767676"
ON_ANY = "#7A7A7A"  # as far from white as from a dark page
LINES = ("-", "--", "-.", ":")
SCORE_LABEL = "score '{}' (higher = more unknown)"


class NotedFigure(Figure):
    """A figure with a sentence of its own for its caption, beside the one that all of its kind have."""

    note: str = ""


def new_axes(width: float = 5.4, height: float = 4.4) -> tuple[NotedFigure, Axes]:
    """A figure of one pair of axes, with a faint grid; sizes in inches."""
    figure = NotedFigure(figsize=(width, height), layout="constrained")
    return figure, dress(figure.add_subplot())


def dress(axes: Axes) -> Axes:
    """Faint grid behind the data, no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E0E0E0", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def spread_x(axes: Axes, images: int, *, near: int) -> None:
    """Draw the x axis' rates near 0, or near 1, in log steps down to one image: there good scores differ.

    Args:
        axes: whose x axis shows rates in [0, 1].
        images: of which they are shares.
        near: 0 or 1.
    """
    least = 0.5 / max(images, 10)  # gives 0 a place, beside that of one image
    sign = 1 - 2 * near

    def forward(rate: FloatArray) -> FloatArray:
        return sign * np.log10(np.maximum(sign * (rate - near) + least, least / 10))

    def inverse(place: FloatArray) -> FloatArray:
        return near + sign * (10 ** (sign * place) - least)

    steps = [10.0**-k for k in range(int(np.log10(max(images, 10))) + 1)]
    ticks = sorted({0.0, 1.0, *(step if near == 0 else 1 - step for step in steps)})
    axes.set_xscale("function", functions=(forward, inverse))
    axes.set_xticks(ticks, [f"{100 * tick:.6g}%" for tick in ticks])
    ends = near - sign * least / 5, 1 - near + sign * 0.03
    axes.set_xlim(min(ends), max(ends))


def mark(axes: Axes, x: ArrayLike, y: ArrayLike, color: str) -> None:
    """Mark the threshold in use on a curve."""
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


def label_mark(axes: Axes) -> None:
    """One legend entry for all the marks."""
    label = "at the threshold in use"
    axes.plot([], [], "o", color="white", markeredgecolor="black", markersize=7, label=label)


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the ``index``-th unknown set, told apart by either."""
    colors = COLORS[1:]
    return {"color": colors[index % len(colors)], "linestyle": LINES[index % len(LINES)]}


def shorten(name: str, length: int = 18) -> str:
    """A name cut to fit an axis, the cut marked."""
    name = one_line(name)
    return plain(name if len(name) <= length else name[: length - 1] + "…")


def plain(name: str) -> str:
    """A name that matplotlib has the glyphs for, and neither sets as a formula nor leaves out of a legend."""
    text = one_line(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
