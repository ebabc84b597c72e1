"""How the run came about: learning curves and the search for a threshold."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from osr_lightning.evaluation.acceptance import FloatArray
from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import COLORS, GREY, dress, new_axes

Curve = tuple[FloatArray, FloatArray]
PANELS = {"loss": "loss (nats per image)", "accuracy": "accuracy (share right)"}
STAGES = {"train": ("training", COLORS[0], "-", "o"), "val": ("validation", COLORS[1], "--", "s")}


def read_metrics(path: Path) -> dict[str, Curve]:
    """Read the curves from the ``metrics.csv`` of Lightning's CSVLogger.

    Training and validation are logged in rows of their own, so every column has gaps; the last value
    within an epoch counts.

    Returns:
        Column, such as ``train/loss``, -> epochs ``(E,)``, counted from 1 as the console does, and values
        ``(E,)``; only columns with values.
        None, and a warning, where the file is damaged.
    """
    curves = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("epoch")]
        for column in (f"{stage}/{panel}" for stage in STAGES for panel in PANELS):
            values = {int(float(row["epoch"])) + 1: float(row[column]) for row in rows if row.get(column)}
            if values:
                curves[column] = (np.array([*values], np.float64), np.array([*values.values()], np.float64))
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        # a test must not fail for want of one figure
        warnings.warn(f"{path} is damaged ({error}), so there are no learning curves", stacklevel=2)
        return {}
    return curves


@figure(
    caption="A validation curve that turns away from the training one means overfitting.",
    order=120,
    wide=True,
    needs="nothing",
)
def learning_curves(material: Material) -> Figure | None:
    """Loss and accuracy of training and validation by epoch; ``None`` where none were logged."""
    metrics = material.metrics
    if metrics is None or not metrics.is_file() or not (curves := read_metrics(metrics)):
        return None
    panels = [panel for panel in PANELS if any(name.endswith(f"/{panel}") for name in curves)]
    figure = Figure(figsize=(4.6 * len(panels), 3.8), layout="constrained")
    figure.suptitle("Learning curves")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        dress(axes)
        for stage, (name, color, line, marker) in STAGES.items():
            if f"{stage}/{panel}" in curves:
                epochs, values = curves[f"{stage}/{panel}"]
                # markers on a long run would merge into a band
                marker = marker if len(epochs) <= 30 else ""
                axes.plot(
                    epochs, values, color=color, linestyle=line, marker=marker, markersize=4, label=name
                )
        if material.epoch is not None:
            label = f"tested: epoch {material.epoch}"
            axes.axvline(material.epoch, color=GREY, linestyle=":", linewidth=1.5, zorder=1, label=label)
        axes.set(xlabel="epoch", ylabel=PANELS[panel])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize="small")
    return figure


@figure(caption="The trials of the search that chose the threshold.", order=130, needs="nothing")
def optimization_history(material: Material) -> Figure | None:
    """The threshold search, trial by trial; ``None`` where there was none."""
    if not material.trials:
        return None
    figure, axes = new_axes()
    threshold, value = np.array(material.trials, dtype=np.float64).reshape(-1, 2).T
    number = np.arange(1, len(value) + 1)
    best = int(np.argmax(value))
    axes.plot(number, value, "o", color=GREY, label=f"trials ({len(value):,})")
    axes.step(number, np.maximum.accumulate(value), where="post", color=COLORS[0], label="best so far")
    label = f"best: {value[best]:.4f} at threshold {threshold[best]:.4g}"
    axes.plot(
        number[best], value[best], "*", color=COLORS[1], markersize=13, markeredgecolor="black", label=label
    )
    axes.set(title="Search for the threshold", xlabel="trial", ylabel="total accuracy (share)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", fontsize="small")
    return figure
