"""An alarm that may be looked at after every image: a bet against the images being as those of calibration.

The wealth of who bets at fair odds stays below ``1 / alpha`` for ever with probability ``1 - alpha``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osr_lightning.scoring.calibration import Calibration, kept_ranks
from osr_lightning.scoring.sweep import Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT_ONCE = 256  # scores that are compared with each other
_JUMP = 0.001  # share of the wealth that is spread over all bets anew before every image
# stakes on images that are among the strangest, and the share of known images that these are
_STRANGE = ((0.05, 0.003), (0.05, 0.01), (0.1, 0.03), (0.3, 0.1))
_MOST = 300  # decimal digits of a wealth that is written as a number


@dataclass(frozen=True)
class FileWealth:
    """What a file of predictions made of the wealth.

    Attributes:
        file: its path.
        images: how many it has.
        log10_wealth: after its last image.
        log10_greatest: the greatest until then, in any file.
    """

    file: str
    images: int
    log10_wealth: float
    log10_greatest: float


@dataclass(frozen=True)
class Sequential:
    """What the bets came to.

    Attributes:
        alpha: the greatest probability of a false alarm at any time.
        files: in order.
        alarm_at: place of the image that gave alarm among all of them, from 1 on; None without.
        alarm_in: the file that it is in.
        course: ``(m,)`` log10 of the wealth after every image.
    """

    alpha: float
    files: tuple[FileWealth, ...]
    alarm_at: int | None
    alarm_in: str | None
    course: Floats

    @property
    def alarm(self) -> bool:
        """Whether the wealth ever was at least ``1 / alpha``."""
        return self.alarm_at is not None


def sequential(
    calibration: Calibration,
    scores: Floats,
    files: Sequence[tuple[str, int]],
    alpha: float = 0.01,
    seed: int = 0,
) -> Sequential:
    """Bet image by image that predictions differ from the known images that chose the threshold.

    If all are known images exchangeable with these, there ever is an alarm, however many images come and
    however often one looks, with probability at most ``alpha`` (Ville's inequality). The same images in the
    same order give the same wealth: with more behind them, the beginning stays.

    Args:
        calibration: of the deciding score, with known scores.
        scores: ``(m,)`` of the predictions, in the order in which they came.
        files: path and number of predictions of each file, in the same order.
        alpha: share in (0, 1).
        seed: of the draws that break ties.
    """
    course = log_wealth(uniform_ranks(calibration, scores, seed)) / math.log(10)
    greatest = np.maximum.accumulate(course)
    ends = np.cumsum([count for _, count in files])
    above = greatest >= -math.log10(alpha)
    at = int(above.argmax()) if above.any() else None
    found = tuple(
        FileWealth(
            name, count, float(course[end - 1]) if end else 0.0, float(greatest[end - 1]) if end else 0.0
        )
        for (name, count), end in zip(files, ends.tolist(), strict=True)
    )
    where = None if at is None else files[int(np.searchsorted(ends, at, "right"))][0]
    return Sequential(alpha, found, None if at is None else at + 1, where, course)


def uniform_ranks(calibration: Calibration, scores: Floats, seed: int) -> Floats:
    """A number in (0, 1] for every image, small for a strange one: independent and uniform without drift.

    The ``k`` kept of ``n`` known scores cut the line into ``k + 1`` parts. If new images are exchangeable
    with the known ones, the next one lies in a part with a probability proportional to how many of the
    ``n + 1`` gaps between all known scores are in it, plus the new images in it so far (Pólya's urn: the
    shares of the parts are Dirichlet distributed). Each image's number is drawn from the range that its part
    has in that distribution, as a smoothed conformal p-value is (Vovk, Gammerman and Shafer 2005, section
    8.1). So new images join the known ones, and a calibration set that is not quite typical gives no alarm
    however many images come.

    A tie is broken by a draw for both scores; where not all known scores are kept, that is exact but for
    those that are tied and not kept.

    Args:
        calibration: of the score, with known scores.
        scores: ``(m,)``, in order.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    known = np.sort(_tied(np.array(calibration.known_scores), rng.random(len(calibration.known_scores))))
    # of each image by itself, so that further images change none
    ties, draws = rng.random((len(scores), 2)).T
    part = np.searchsorted(known, _tied(scores, ties))
    ranks = kept_ranks(calibration.count_known, len(known))
    weight = np.diff(np.concatenate([[-1], ranks, [calibration.count_known]])).astype(np.float64)
    found = np.empty(len(scores))
    for start in range(0, len(scores), _AT_ONCE):
        here = part[start : start + _AT_ONCE]
        earlier = np.tri(len(here), k=-1, dtype=bool)
        above = np.append(np.cumsum(weight[::-1])[::-1], 0)
        stranger = above[here + 1] + (earlier & (here[:, None] < here)).sum(axis=1)
        own = weight[here] + (earlier & (here[:, None] == here)).sum(axis=1)
        whole = above[0] + np.arange(len(here))
        found[start : start + _AT_ONCE] = (stranger + (1 - draws[start : start + _AT_ONCE]) * own) / whole
        np.add.at(weight, here, 1)
    return found


def _tied(scores: Floats, draws: Floats) -> NDArray[np.complex128]:
    """Scores that are ordered by a draw where they are equal, as numpy orders complex numbers."""
    both = np.empty(len(scores), np.complex128)
    both.real, both.imag = scores, draws
    return both


def log_wealth(p: Floats) -> Floats:
    """The natural logarithm of the wealth after each of ``(..., m)`` uniform numbers, from a wealth of 1 on.

    The bets pay ``1``; ``1 ± (p - 1/2)`` and ``1 ± 2 (p - 1/2)``, where the scores as a whole went up or
    down; ``p^(-1/2) / 2``; and ``1 - e + e [p <= d] / d`` for some ``e`` and ``d``, where a share of about
    ``e`` has become strange. Each pays 1 on average, and so do all together, whatever the wealth in each.
    Before every image a small share is spread evenly over all of them, so that long without drift costs
    little of what is won when it comes (the "simple jumper" of Vovk, Petej, Nouretdinov, Ahlberg, Carlsson
    and Gammerman, Retrain or not retrain, 2021).
    """
    pays = np.stack(
        [
            np.ones(p.shape),
            *(1 + stake * (p - 0.5) for stake in (-2, -1, 1, 2)),
            0.5 * p**-0.5,
            *(1 - stake + stake * (p <= strange) / strange for stake, strange in _STRANGE),
        ],
        axis=-1,
    )
    share = np.full((*p.shape[:-1], pays.shape[-1]), 1 / pays.shape[-1])
    gains = np.empty(p.shape)
    for image in range(p.shape[-1]):
        share = ((1 - _JUMP) * share + _JUMP / pays.shape[-1]) * pays[..., image, :]
        gain = share.sum(axis=-1)
        share /= gain[..., None]
        gains[..., image] = gain
    wealth: Floats = np.cumsum(np.log(gains), axis=-1)
    return wealth


def to_dict(found: Sequential) -> dict[str, Any]:
    """For JSON; every number is finite."""
    return {
        "alarm": found.alarm,
        "alpha": found.alpha,
        "alarm_at": found.alarm_at,
        "alarm_in": found.alarm_in,
        "wealth": 10.0 ** min(found.files[-1].log10_wealth, _MOST),
        "files": [vars(file) for file in found.files],
    }


def draw(found: Sequential) -> Figure:
    """The wealth after every image, and where each file ends."""
    from matplotlib.figure import Figure

    from osr_lightning.evaluation.figures.style import COLORS, dress

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = dress(figure.subplots())
    shown = np.unique(np.linspace(0, len(found.course), 2000).astype(np.int64))
    axes.plot(shown, np.append(0, found.course)[shown], color=COLORS[1], linewidth=1.2)
    axes.axhline(
        -math.log10(found.alpha), color="black", linewidth=1.5, label=f"alarm: {1 / found.alpha:,.6g}"
    )
    for end in np.cumsum([file.images for file in found.files])[:-1].tolist()[:100]:
        axes.axvline(end, color="0.8", linewidth=0.8, zorder=0)
    axes.set(
        title="Wealth of a bet against the calibration images",
        xlabel="predictions",
        ylabel="log10 of the wealth",
    )
    axes.legend(fontsize="small")
    return figure
