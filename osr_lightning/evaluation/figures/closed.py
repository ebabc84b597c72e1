"""The classifier by itself: how its errors go with its scores, and its accuracy with its confidence."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from osr_lightning.evaluation.figures.registry import Material, figure
from osr_lightning.evaluation.figures.style import (
    GREY,
    KNOWN_COLOR,
    dress,
    label_mark,
    mark,
    new_axes,
)
from osr_lightning.evaluation.measures import closed_set


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
        mark(axes, coverage[accepted - 1], risk[accepted - 1], KNOWN_COLOR)
        label_mark(axes)
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
    figure = Figure(figsize=(5.4, 5), layout="constrained")
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
        xlim=(-0.01, 1.01),  # with room for a line that lies on the border
        ylim=(-0.01, 1.01),
    )
    top.tick_params(labelbottom=False)
    # inside the axes it would hide a bar of few, wrongly unsure images
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    bottom.bar(left, count, width, align="edge", color=GREY, edgecolor="white")
    bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="images", yscale="symlog")
    return figure
