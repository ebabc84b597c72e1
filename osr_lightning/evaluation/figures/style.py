"""The look that the figures share: readable in print, in grey and to colour-blind readers."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osr_lightning.errors import one_line

# Okabe and Ito (2008), without black (kept for unknown images and sums) and yellow (too pale on white)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
KNOWN_COLOR, GREY = COLORS[0], "#767676"
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "*")
SCORE_LABEL = "score '{}' (higher = more unknown)"


def new_axes(width: float = 6.4, height: float = 4.8) -> tuple[Figure, Axes]:
    """A figure of one pair of axes, with a faint grid; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, dress(figure.add_subplot())


def dress(axes: Axes) -> Axes:
    """Faint grid behind the data, no box around it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color="#E0E0E0", linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def unit_square(axes: Axes) -> None:
    """Both axes are rates: 0 to 1, with room for a line that lies on the border."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the ``index``-th unknown set, told apart by either."""
    colors = COLORS[1:]
    return {"color": colors[index % len(colors)], "linestyle": LINES[index % len(LINES)]}


def point_style(index: int) -> dict[str, Any]:
    """Colour and marker of the ``index``-th class; the pair repeats only after 42 of them."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def colormap(name: str) -> mpl.colors.Colormap:
    """A named matplotlib colour map."""
    return mpl.colormaps[name]


def shorten(name: str, length: int = 18) -> str:
    """A name cut to fit an axis, the cut marked."""
    name = one_line(name)
    return plain(name if len(name) <= length else name[: length - 1] + "…")


def plain(name: str) -> str:
    """A name that matplotlib has the glyphs for, and neither sets as a formula nor leaves out of a legend."""
    text = one_line(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
