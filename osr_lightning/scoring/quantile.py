"""The conformal quantile: the threshold that rejects at most a share of known images."""

from __future__ import annotations

import math

import numpy as np

from osr_lightning.errors import UserError
from osr_lightning.scoring.sweep import Floats


def known_quantile(known_scores: Floats, alpha: float) -> float:
    """The split-conformal threshold that rejects at most a share ``alpha`` of known images.

    It is the ``ceil((n + 1) (1 - alpha))``-th smallest of the ``n`` held-out known scores. If a new
    known image is exchangeable with them, ``P(score > threshold) <= alpha`` (Vovk et al. 2005;
    Angelopoulos & Bates 2023).

    Args:
        known_scores: ``(n,)`` scores of known images that took no part in training.
        alpha: share in (0, 1).

    Returns:
        The threshold, in units of the score.

    Raises:
        UserError: with fewer than ``1 / alpha - 1`` scores, where no finite threshold has that guarantee.
    """
    check_alpha(alpha, len(known_scores))
    rank = conformal_rank(len(known_scores), alpha)
    return float(np.partition(known_scores, rank - 1)[rank - 1])


def check_alpha(
    alpha: float,
    images: int,
    beside: str = "",
    share: str = "data.val_fraction",
    option: str = "model.alpha",
) -> None:
    """Stop where ``images`` known validation images are too few for ``alpha``.

    Args:
        alpha: share in (0, 1).
        images: how many choose the threshold.
        beside: which further images do not, for the message.
        share: what to raise so that there are more, for the message.
        option: what alpha is called there.

    Raises:
        UserError: with the number needed and the smallest alpha possible.
    """
    if conformal_rank(images, alpha) <= images:
        return
    needed = images_needed(alpha)
    # rounded up to two digits, so that what is printed will do
    smallest = 1 / (images + 1)
    digits = 1 - math.floor(math.log10(smallest))
    printed = math.ceil(smallest * 10**digits) / 10**digits
    raise UserError(
        f"alpha {alpha:g} needs {needed:,} validation images{beside}, there are {images:,}; "
        f"the smallest possible is {printed:g}: raise {option} or {share}"
    )


def images_needed(alpha: float) -> int:
    """The fewest known validation images that serve ``alpha``."""
    needed = math.ceil(1 / alpha - 1 - 1e-9)
    while conformal_rank(needed, alpha) > needed:
        needed += 1
    return needed


def conformal_rank(n: int, alpha: float) -> int:
    """``ceil((n + 1) (1 - alpha))``; above ``n`` where ``n`` scores are too few for ``alpha``."""
    # the small slack keeps the product from being rounded up past a whole number
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)
