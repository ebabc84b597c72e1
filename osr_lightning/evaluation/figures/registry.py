"""The list of all figures: what they are drawn from, how one is added, how they are drawn and saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from osr_lightning.atomic_write import replacing
from osr_lightning.evaluation.acceptance import IntArray
from osr_lightning.evaluation.caption import Caption
from osr_lightning.evaluation.figures.style import NotedFigure
from osr_lightning.evaluation.outcomes import Needs, enough
from osr_lightning.evaluation.prediction_table import PredictionTable

_DPI = 120


@dataclass(frozen=True)
class Material:
    """Everything that a run may be drawn from.

    Attributes:
        table: the test run.
        images: rows of the table ``(n,)`` -> their images ``(n, C, H, W)`` uint8; ``None`` for no gallery.
        metrics: the ``metrics.csv`` of the training run; the file need not exist.
        trials: ``(threshold, value)`` of the threshold search, in order; a higher value is better.
        embedding: gives the result of ``tsne_embedding``, which is computed beside the other figures;
            ``None`` for no embedding.
        epoch: whose weights are tested, from 1; None where that is not known.
    """

    table: PredictionTable
    images: Callable[[IntArray], NDArray[np.uint8]] | None = None
    metrics: Path | None = None
    trials: Sequence[tuple[float, float]] = ()
    embedding: Callable[[], tuple[IntArray, NDArray[np.float32]]] | None = None
    epoch: int | None = None


Draw = Callable[[Material], "Figure | None"]
AnyDraw = TypeVar("AnyDraw", bound=Draw)


class Entry(NamedTuple):
    """One figure: how to draw it, its caption, and the kinds of images it cannot do without."""

    draw: Draw
    caption: Caption
    needs: Needs


FIGURES: dict[str, Entry] = {}  # by the function's name, which is the file's


def figure(
    *, caption: str, order: int, wide: bool = False, plot: bool = True, needs: Needs = "both"
) -> Callable[[AnyDraw], AnyDraw]:
    """Make a function of `Material` a figure of every test that has what it needs.

    The function returns ``None`` where something else than images is missing.

    Args:
        caption: what to look for, below the figure in the report.
        order: figures come in ascending order; there is room between the numbers.
        wide: whether it needs the page's full width.
        plot: whether it is dark on white, and may be turned light on dark; a figure of pictures may not.
        needs: the kinds of test images without which it is left out and the function is not called.

    Raises:
        ValueError: if there is a figure of that name.
    """

    def register(draw: AnyDraw) -> AnyDraw:
        if draw.__name__ in FIGURES:
            raise ValueError(f"there is a figure named {draw.__name__} already")
        FIGURES[draw.__name__] = Entry(draw, Caption(order, caption, wide, plot), needs)
        return draw

    return register


def each_figure(material: Material) -> Iterator[tuple[str, Figure]]:
    """Name and figure of all that the run has the data for, in the order of the report.

    Each is drawn when it is asked for.
    """
    unknown = ~material.table.known
    entries = sorted(FIGURES.items(), key=lambda item: (item[1].caption.order, item[0]))
    for name, entry in entries:
        if enough(entry.needs, unknown) and (drawn := entry.draw(material)) is not None:
            yield name, drawn


def save_figures(drawn: Iterable[tuple[str, Figure]], folder: Path) -> list[Path]:
    """Write ``NAME.png`` of each figure, with its caption inside for the report to read.

    Args:
        drawn: of `each_figure`.
        folder: made where it is missing.

    Returns:
        The files, in the same order.
    """
    paths = []
    for name, drawing in drawn:
        paths.append(folder / f"{name}.png")
        with replacing(paths[-1]) as partial:
            caption = FIGURES[name].caption
            note = drawing.note if isinstance(drawing, NotedFigure) else ""
            _save(drawing, partial, caption._replace(text=f"{caption.text} {note}".rstrip()).metadata())
    return paths


def _save(drawing: Figure, path: Path, texts: Mapping[str, str]) -> None:
    """What ``savefig`` writes, in two thirds of its time: that draws once for the layout and once more."""
    drawing.set_dpi(_DPI)
    canvas = FigureCanvasAgg(drawing)
    canvas.draw()  # type: ignore[no-untyped-call]
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    Image.fromarray(pixels).save(path, "PNG", pnginfo=info, dpi=(_DPI, _DPI))
