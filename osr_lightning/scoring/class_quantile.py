"""A threshold for each class: of none of them more than a share of the known images is rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.quantile import conformal_rank, images_needed, known_quantile
from osr_lightning.scoring.sweep import Bools, Floats

_NAMED = 5


class Predicted(NamedTuple):
    """What is known of ``n`` images, and what they are called.

    Attributes:
        labels: ``(n,)`` in ``0 .. K-1``; others are of no known class.
        predicted: ``(n,)`` in ``0 .. K-1``, before any rejection.
        classes: names of the ``K`` known classes.
        common: whether a class with too few images has the threshold that all share, and is not refused.
    """

    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    classes: Sequence[str]
    common: bool = False


def class_shifts(scores: Floats, of: Predicted, alpha: float) -> tuple[float, Floats]:
    """The threshold that all classes share, and what is added to the score of an image named each of them.

    A class's own threshold is the conformal quantile of the scores of its images (Mondrian conformal
    prediction; Vovk, Lindsay, Nouretdinov and Gammerman 2003), and an image is compared with that of the
    class it is named. So a known image of a class that is always named rightly is rejected with probability
    at most ``alpha``. Images of a class that are taken for another are compared with the other's threshold,
    by which more of them may be rejected: thresholds are then raised, each time by the smallest step that
    accepts one of them more, until of no class's ``m`` images more than ``m - ceil((m + 1) (1 - alpha))`` are
    rejected, and one less of a class with such images, as the raise was chosen by them.

    Args:
        scores: ``(n,)``.
        of: these images.
        alpha: share in (0, 1).

    Returns:
        ``c`` and ``(K,)``: where an image is named ``k``, ``score + shift[k] > c`` as ``score`` is greater
        than the class's threshold ``c - shift[k]``.

    Raises:
        UserError: where a class has too few images.
    """
    count = len(of.classes)
    known = (of.labels >= 0) & (of.labels < count)
    scores, labels, predicted = scores[known], of.labels[known], of.predicted[known]
    common = known_quantile(scores, alpha)
    sizes = np.bincount(labels, minlength=count)
    ranks = np.array([conformal_rank(int(size), alpha) for size in sizes])
    served = ranks <= sizes
    if not of.common:
        refuse_few(sizes, of.classes, alpha)
    thresholds = np.array(
        [
            np.partition(scores[labels == label], rank - 1)[rank - 1] if fits else common
            for label, (rank, fits) in enumerate(zip(ranks, served, strict=True))
        ]
    )
    misnamed = np.bincount(labels[labels != predicted], minlength=count) > 0
    most = np.where(served, np.maximum(sizes - ranks - misnamed, 0), sizes)  # images that may be rejected
    while True:
        rejected: Bools = is_unknown(scores - thresholds[predicted], 0.0)
        too_many = np.bincount(labels[rejected], minlength=count) > most
        if not too_many.any():
            break
        steps = np.where(rejected & too_many[labels], scores - thresholds[predicted], np.inf)
        place = int(steps.argmin())
        thresholds[predicted[place]] = scores[place]
    shifts = common - thresholds
    # an image at its class's threshold stays accepted where the sum is rounded
    over = thresholds + shifts > common
    shifts[over] = np.nextafter(shifts[over], -np.inf)
    return common, shifts


def refuse_few(sizes: NDArray[np.int64], classes: Sequence[str], alpha: float, beside: str = "") -> None:
    """Stop where a class has too few images for ``alpha``.

    Args:
        sizes: ``(K,)``, how many of each class choose its threshold.
        classes: their names.
        alpha: share in (0, 1).
        beside: which further images do not, for the message.

    Raises:
        UserError: naming them.
    """
    needed = images_needed(alpha)
    few = [f"{name} {size:,}" for name, size in zip(classes, sizes.tolist(), strict=True) if size < needed]
    if few:
        named = ", ".join(few[:_NAMED]) + ", …" * (len(few) > _NAMED)
        raise UserError(
            f"class_quantile with alpha {alpha:g} needs {needed:,} validation images of each class{beside}, "
            f"and there are {named}: raise model.alpha or data.val_fraction, or let these classes have the "
            "common threshold with model.few_share true"
        )
