"""The figure of ``osr drift``: the scores of calibration and predictions, and where they part."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from osr_lightning.deploy.drift import Drift
from osr_lightning.evaluation.figures.images import bin_edges
from osr_lightning.evaluation.figures.style import COLORS, KNOWN_COLOR, SCORE_LABEL, dress
from osr_lightning.scoring.calibration import Calibration, order_statistics
from osr_lightning.scoring.sweep import Floats

BINS = 40


def draw(found: Drift, calibration: Calibration, scores: Floats, name: str) -> Figure:
    """Both distributions, as histograms above and as empirical distribution functions below.

    Args:
        found: what the tests found.
        calibration: of the deciding score.
        scores: ``(m,)`` of the predictions.
        name: of the score.
    """
    known = np.array(calibration.known_scores)
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    top, bottom = (dress(axes) for axes in figure.subplots(2, 1, sharex=True))
    edges, log = bin_edges(np.concatenate([known, scores]), calibration.value, BINS)
    drawn = (
        (known, f"known calibration images ({calibration.count_known:,})", KNOWN_COLOR, "-"),
        (scores, f"predictions ({len(scores):,})", COLORS[1], "--"),
    )
    for values, label, color, line in drawn:
        # what lies outside the axis is counted in its last bin
        inside = np.clip(values, edges[0], edges[-1])
        weights = np.histogram(inside, edges)[0] / len(values)
        top.stairs(weights, edges, fill=True, color=color, alpha=0.25)
        top.stairs(weights, edges, color=color, linestyle=line, linewidth=1.4, label=label)
        bottom.ecdf(order_statistics(inside), color=color, linestyle=line, linewidth=1.4)
    for axes in (top, bottom):
        axes.axvline(
            calibration.value, color="black", linewidth=1.5, label=f"threshold {calibration.value:.4g}"
        )
    share, distribution = found.share, found.distribution
    top.set(
        title=f"Called unknown: {share.rejected / share.images:.2%}, calibration {share.expected:.2%}, "
        f"p = {share.p_value:.2g}",
        ylabel="share of the images per bin",
    )
    bottom.set(
        title=f"Kolmogorov-Smirnov distance {distribution.statistic:.3f}, p = {distribution.p_value:.2g}",
        xlabel=SCORE_LABEL.format(name),
        ylabel="share of the images up to this score",
        xscale="log" if log else "linear",
        xlim=(edges[0], edges[-1]),
    )
    top.legend(fontsize="small")
    return figure
