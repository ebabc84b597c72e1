"""Whether what a deployment sees still looks like the known images that chose its threshold.

The tests, the scores in ``predictions.csv`` that they take, and the figure of both distributions.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from osr_lightning.deploy.answers import read_answers
from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration, order_statistics
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.sweep import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Share:
    """The share of images called unknown, against the known calibration images'.

    Attributes:
        images: how many predictions there are.
        rejected: how many of them are called unknown.
        expected: the share of the known calibration images that the threshold rejects.
        low: the smallest share that is no alarm.
        high: the greatest.
        p_value: of a share as far off, on the side that it is on, doubled.
        alarm: whether that is at most alpha.
    """

    images: int
    rejected: int
    expected: float
    low: float
    high: float
    p_value: float
    alarm: bool


@dataclass(frozen=True)
class Distribution:
    """The scores' distribution, against the known calibration images'.

    Attributes:
        statistic: the greatest distance between the two empirical distributions (Kolmogorov-Smirnov).
        p_value: of one as great.
        alarm: whether that is at most alpha.
        compared: how many calibration scores the checkpoint keeps.
        median_expected: their median.
        median: of the predictions' scores.
    """

    statistic: float
    p_value: float
    alarm: bool
    compared: int
    median_expected: float
    median: float


@dataclass(frozen=True)
class Drift:
    """What both tests found."""

    alpha: float
    share: Share
    distribution: Distribution

    @property
    def alarm(self) -> bool:
        """Whether either test gives alarm."""
        return self.share.alarm or self.distribution.alarm


def drift(calibration: Calibration, scores: Floats, alpha: float = 0.01) -> Drift:
    """Compare predictions with the known images that chose the threshold.

    Each test gives a false alarm with probability at most ``alpha``, both together with at most ``2 alpha``,
    if the images are known ones exchangeable with the calibration images. That is a probability over
    calibration sets and batches of predictions alike: the batches of one deployment share their calibration
    set, so that their false alarms come together or not at all.

    Args:
        calibration: of the deciding score, with known images and their scores.
        scores: ``(m,)`` of the predictions, ``m > 0``.
        alpha: share in (0, 1), of each test.
    """
    rejected = int(is_unknown(scores, calibration.value).sum())
    assert calibration.rejected_known is not None
    among = round(calibration.rejected_known * calibration.count_known)
    return Drift(
        alpha,
        share_test(rejected, len(scores), among, calibration.count_known, alpha),
        distribution_test(calibration.known_scores, scores, alpha),
    )


def share_test(rejected: int, images: int, rejected_known: int, count_known: int, alpha: float) -> Share:
    """Exact two-sided test of the share called unknown, its threshold being an estimate.

    A threshold at one of the ``n`` scores that chose it, ``r`` of which are greater, rejects a share of all
    known images that is itself ``Beta(r + 1, n - r)`` distributed, so that of ``m`` new known images a
    beta-binomial number is called unknown (Vovk 2012; Angelopoulos & Bates 2023, section 3.2). With ever
    more calibration images that is the binomial distribution. A threshold between two of the scores
    rejects a little less.

    The binomial test at the nominal share takes the threshold for exact, and finds ever more "drift" the more
    predictions there are. False alarms in % at ``alpha`` 1% with a threshold that shall reject 5%
    (``python benchmarks/drift.py``, 2,000 draws each):

    ======  =======  ========  =============
    n       m        binomial  beta-binomial
    ======  =======  ========  =============
       250      100       1.2            0.4
       250    1,000      24.6            0.5
       250   10,000      70.9            1.1
     1,000      100       0.7            0.2
     1,000    1,000       6.8            1.1
     1,000   10,000      44.4            0.9
     6,000      100       0.4            0.4
     6,000    1,000       1.4            0.9
     6,000   10,000      10.6            1.0
    ======  =======  ========  =============

    Args:
        rejected: of the predictions, how many are called unknown.
        images: ``m``, how many predictions there are.
        rejected_known: ``r``, of the known calibration images that the threshold rejects.
        count_known: ``n``, how many of these there are.
        alpha: share in (0, 1).
    """
    from scipy.stats import betabinom

    # a threshold below all n scores leaves nothing to estimate the rest by: as if one were accepted
    rest = max(count_known - rejected_known, 1)
    mass = betabinom.pmf(np.arange(images + 1), images, rejected_known + 1, rest)
    # each tail is summed from its own end, where its small numbers are
    at_most, at_least = np.cumsum(mass), np.cumsum(mass[::-1])[::-1]
    unsuspicious = np.flatnonzero(2 * np.minimum(at_most, at_least) > alpha)
    p_value = min(1.0, 2 * float(min(at_most[rejected], at_least[rejected])))
    return Share(
        images,
        rejected,
        rejected_known / count_known,
        float(unsuspicious[0]) / images,
        float(unsuspicious[-1]) / images,
        p_value,
        p_value <= alpha,
    )


def distribution_test(known_scores: Sequence[float], scores: Floats, alpha: float) -> Distribution:
    """Two-sample Kolmogorov-Smirnov test of the scores.

    Where the checkpoint keeps 1,000 of more calibration scores, evenly spaced, they are taken for a sample of
    1,000: they vary less than one, so that false alarms are rarer than ``alpha``.

    Args:
        known_scores: of the calibration images.
        scores: ``(m,)`` of the predictions.
        alpha: share in (0, 1).
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(known_scores, scores)
    return Distribution(
        float(found.statistic),
        float(found.pvalue),
        bool(found.pvalue <= alpha),
        len(known_scores),
        float(np.median(known_scores)),
        float(np.median(scores)),
    )


def to_dict(found: Drift) -> dict[str, Any]:
    """For JSON; every number is finite."""
    share, distribution = found.share, found.distribution
    return {
        "alarm": found.alarm,
        "alpha": found.alpha,
        "share": {**vars(share), "share": share.rejected / share.images},
        "distribution": vars(distribution),
    }


class Scores(NamedTuple):
    """What the rows of all files hold.

    Attributes:
        values: ``(m,)`` float64, of the rows without an error, in order.
        errors: how many rows were left out, as their file could not be read.
        files: each file's path, and how many of the values are its.
    """

    values: Floats
    errors: int
    files: list[tuple[str, int]]


def read(paths: Sequence[str], score: str, threshold: float) -> Scores:
    """Read predictions that were decided by ``score`` and ``threshold``; see `read_answers`.

    Raises:
        UserError: where `read_answers` does, or no row has a score.
    """
    values, errors, files = array("d"), 0, []
    for path in paths:
        before = len(values)
        for answer in read_answers(path, score, threshold):
            if answer.score is None:
                errors += 1
            else:
                values.append(answer.score)
        files.append((path, len(values) - before))
    if not values:
        beside = f", only {errors:,} rows with an error" if errors else ""
        raise UserError(f"there are no predictions in {', '.join(paths)}{beside}: predict some images first")
    return Scores(np.frombuffer(values), errors, files)


def draw(found: Drift, calibration: Calibration, scores: Floats, name: str) -> Figure:
    """Both distributions, as histograms above and as empirical distribution functions below.

    Args:
        found: what the tests found.
        calibration: of the deciding score.
        scores: ``(m,)`` of the predictions.
        name: of the score.
    """
    from matplotlib.figure import Figure

    from osr_lightning.evaluation.figures.images import bin_edges
    from osr_lightning.evaluation.figures.style import COLORS, KNOWN_COLOR, SCORE_LABEL, dress

    known = np.array(calibration.known_scores)
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    top, bottom = (dress(axes) for axes in figure.subplots(2, 1, sharex=True))
    edges, log = bin_edges(np.concatenate([known, scores]), calibration.value, 40)
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
