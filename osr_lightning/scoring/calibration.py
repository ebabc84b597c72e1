"""Calibration: from the scores of held-out images to a threshold, and a record of where it came from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError
from osr_lightning.scoring.class_quantile import Predicted, class_shifts
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.quantile import known_quantile
from osr_lightning.scoring.sweep import Bools, Costs, Floats, min_cost, optuna_search

CalibrationMethod = Literal[
    "known_quantile", "cross_known_quantile", "class_quantile", "max_accuracy", "min_cost", "optuna", "fixed"
]
CROSS: Final = "cross_known_quantile"
BY_CLASS: Final = "class_quantile"
QUANTILES = frozenset({"known_quantile", CROSS, BY_CLASS})  # that promise something of alpha
NEEDS_UNKNOWNS = frozenset({"max_accuracy", "min_cost", "optuna"})
# a threshold that rejects more of the known images, or less of an unknown set, is worth a word; one that
# rejects less than the other hardly decides anything
MANY, FEW = 0.5, 0.05
_NONE = "none"  # how a guarantee begins that is none
KEPT_SCORES = 1000  # of the known calibration images, per score: 8 kB in the checkpoint


@dataclass(frozen=True)
class Calibration:
    """A threshold and its provenance; kept in the checkpoint and in ``results.json``.

    Attributes:
        value: the threshold, in units of the score.
        method: one of `CalibrationMethod`.
        target: what the method aims at, e.g. the largest share of knowns to reject; null for none.
        calibrated_on: the images whose scores chose the value.
        optimistic: true if test images were among them.
        count_known: number of known images among them.
        guarantee: one sentence on what may be expected of the threshold.
        count_unknown: number of unknown images among them.
        rejected_known: share of those known images that the threshold rejects; null without any.
        rejected_unknown: the same of the unknown ones.
        known_scores: order statistics of the known ones' scores, see `order_statistics`; what p-values
            and `osr drift` compare with. None where nothing was calibrated, or by a version that kept none.
        class_shifts: by class_quantile what is added to the score of an image named each class, in the order
            of the classes, so that one value serves all; empty for other methods.
    """

    value: float
    method: CalibrationMethod
    target: float | dict[str, float] | None
    calibrated_on: str
    optimistic: bool
    count_known: int
    guarantee: str
    count_unknown: int = 0
    rejected_known: float | None = None
    rejected_unknown: float | None = None
    known_scores: tuple[float, ...] = ()
    class_shifts: tuple[float, ...] = ()

    @property
    def class_thresholds(self) -> tuple[float, ...]:
        """Each class's own threshold, of the score before the shift; empty where all share one."""
        return tuple(self.value - shift for shift in self.class_shifts)

    @property
    def guaranteed(self) -> bool:
        """Whether something may be expected of the threshold."""
        return not self.guarantee.startswith(_NONE)

    def without_guarantee(self, why: str) -> Calibration:
        """The same threshold, of which nothing may be expected any more."""
        return replace(self, guarantee=f"{_NONE}: {why}")

    def summary(self, classes: Sequence[str] = ()) -> dict[str, Any]:
        """All but the scores: what ``results.json`` and ``calibration.json`` hold.

        Args:
            classes: names of the known ones, for ``class_thresholds`` where each has its own.
        """
        names = [field.name for field in fields(self) if field.name not in ("known_scores", "class_shifts")]
        own = dict(zip(classes, self.class_thresholds, strict=False))
        return {name: getattr(self, name) for name in names} | ({"class_thresholds": own} if own else {})


class NotFinite(TypeError):
    """A threshold that is no finite number."""


def read_record(values: object) -> Calibration:
    """A record that was written as plain values; what it does not know is left out.

    Raises:
        NotFinite: where the threshold is NaN or infinite.
        TypeError: where the values are none of a record.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"a calibration record is no {type(values).__name__}")
    names = {field.name for field in fields(Calibration)}
    record = Calibration(**{name: value for name, value in values.items() if name in names})
    if isinstance(record.value, float) and not math.isfinite(record.value):
        raise NotFinite("a threshold that is no finite number")
    right = {
        "value": is_finite(record.value),
        "method": record.method in get_args(CalibrationMethod),
        "target": record.target is None or isinstance(record.target, dict) or is_finite(record.target),
        "calibrated_on": isinstance(record.calibrated_on, str),
        "optimistic": isinstance(record.optimistic, bool),
        "guarantee": isinstance(record.guarantee, str),
        "count_known": _is_count(record.count_known),
        "count_unknown": _is_count(record.count_unknown),
        "rejected_known": _is_share(record.rejected_known),
        "rejected_unknown": _is_share(record.rejected_unknown),
        "known_scores": isinstance(record.known_scores, (tuple, list))
        and all(isinstance(score, float) and not math.isnan(score) for score in record.known_scores),
        "class_shifts": isinstance(record.class_shifts, (tuple, list))
        and all(map(is_finite, record.class_shifts)),
    }
    if wrong := [name for name, fits in right.items() if not fits]:
        raise TypeError(f"the threshold's {wrong[0]} is {str(getattr(record, wrong[0]))[:80]}")
    if len(record.known_scores) > record.count_known:
        raise TypeError(
            f"{len(record.known_scores)} scores of {record.count_known} known images are in a record"
        )
    return replace(
        record,
        value=float(record.value),
        known_scores=tuple(record.known_scores),
        class_shifts=tuple(map(float, record.class_shifts)),
    )


def is_finite(value: object) -> TypeGuard[float]:
    """Whether this is a number, and one that can be shown and reckoned with."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits is no float
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_share(value: object) -> bool:
    return value is None or (is_finite(value) and 0 <= value <= 1)


def order_statistics(scores: Floats, count: int = KEPT_SCORES) -> tuple[float, ...]:
    """``count`` of ``(n,)`` scores that stand for all of them, in ascending order.

    The ``i``-th is in the middle of the ``i``-th of ``count`` equal parts of the sorted scores, so that the
    two empirical distributions differ by at most ``1 / (2 count) + 1 / n`` anywhere. All, where there are no
    more than ``count``.
    """
    return tuple(np.sort(scores)[kept_ranks(len(scores), min(len(scores), count))].tolist())


def kept_ranks(scores: int, count: int) -> NDArray[np.int64]:
    """The ranks, from 0 on, of the ``count`` of so many sorted scores that `order_statistics` keeps."""
    return ((np.arange(count) + 0.5) * scores / count).astype(np.int64)


def calibrate(
    scores: dict[str, Floats],
    known: Bools,
    correct: Bools,
    *,
    method: CalibrationMethod,
    alpha: float,
    costs: Costs,
    unknown_prior: float,
    calibrated_on: str,
    optimistic: bool,
    predicted: Predicted | None = None,
) -> tuple[dict[str, Calibration], list[tuple[float, float]]]:
    """Choose a threshold for every score, so that a change of score finds its own.

    Args:
        scores: score name -> ``(n,)`` values.
        known: ``(n,)`` whether each image is of a known class.
        correct: ``(n,)`` whether the predicted class is the true one.
        method: how, ``fixed`` excepted; ``optuna`` serves the score ``msp`` only.
        alpha: the share that ``known_quantile`` and ``cross_known_quantile`` may reject.
        costs: the prices that ``min_cost`` weighs.
        unknown_prior: share of unknown images to expect, for ``max_accuracy`` and ``min_cost``.
        calibrated_on: said of the images in the record.
        optimistic: whether test images are among them.
        predicted: of the same images; class_quantile needs it.

    Returns:
        Score name -> calibration, and the trials of the ``optuna`` search (else empty).

    Raises:
        UserError: where the images at hand cannot serve the method.
    """
    if not known.any():
        raise UserError(f"calibration by {method} needs known images, and there are none in {calibrated_on}")
    if method in NEEDS_UNKNOWNS and known.all():
        raise UserError(
            f"calibration by {method} needs unknown images, and there are none in {calibrated_on}; name some "
            "with data.calibration_unknown, or use known_quantile"
        )
    for score, values in scores.items():
        if bad := int(np.isnan(values).sum()):
            raise UserError(
                f"the score {score} is NaN for {bad} of {len(values)} calibration images: the weights hold "
                "NaN; train again with a lower model.learning_rate"
            )
    count = int(known.sum())
    trials: list[tuple[float, float]] = []
    chosen: dict[str, Calibration] = {}

    def record(
        score: str,
        value: float,
        target: float | dict[str, float] | None,
        guarantee: str,
        shifts: Floats | None = None,
    ) -> None:
        own = scores[score]
        if shifts is not None and predicted is not None:
            own = own + shifts[predicted.predicted]
        rejected = is_unknown(own, value)
        chosen[score] = Calibration(
            value,
            method,
            target,
            calibrated_on,
            optimistic,
            count,
            guarantee,
            count_unknown=len(known) - count,
            rejected_known=float(rejected[known].mean()),
            rejected_unknown=None if known.all() else float(rejected[~known].mean()),
            known_scores=order_statistics(own[known]),
            class_shifts=() if shifts is None else tuple(shifts.tolist()),
        )

    expecting = f"with {unknown_prior:.0%} unknown images"
    for score, values in scores.items():
        if method == BY_CLASS:
            assert predicted is not None
            value, shifts = class_shifts(values, predicted, alpha)
            record(score, value, alpha, _promise(method, alpha, count), shifts)
        elif method in QUANTILES:
            record(score, known_quantile(values[known], alpha), alpha, _promise(method, alpha, count))
        elif method == "max_accuracy":
            text = f"the greatest total accuracy on the calibration images {expecting}; no guarantee beyond"
            record(score, min_cost(values, known, correct, Costs(), unknown_prior), None, text)
        elif method == "min_cost":
            text = f"the least total cost on the calibration images {expecting}; no guarantee beyond them"
            record(score, min_cost(values, known, correct, costs, unknown_prior), asdict(costs), text)
        elif score == "msp":
            value, trials = optuna_search(values, known, correct)
            record(
                score,
                value,
                None,
                "the best of 20 trials on the calibration images; no guarantee beyond them",
            )
    return chosen, trials


def _promise(method: CalibrationMethod, alpha: float, count: int) -> str:
    """What may be expected of a quantile of ``count`` scores; see `known_quantile`.

    Out of fold, a probability of at most ``2 alpha``, but for ``(1 - F / n) / (F + 1)`` of ``F`` folds, is
    proven where an image is compared with each fold's scores by that fold's fit (Barber et al., Predictive
    inference with the jackknife+, Annals of Statistics 2021, theorem 4; Vovk, Cross-conformal predictors,
    2015). The fit to all of the images that decides here has seen more than each of those.
    """
    if method == CROSS:
        return (
            f"a known image exchangeable with the {count} calibration images is rejected with probability "
            f"about {alpha:g}: each was scored by a fit to the other folds, and a fit to all of them decides "
            f"(cross-conformal; at most {2 * alpha:g} is proven where the folds' own fits decide)"
        )
    if method == BY_CLASS:
        return (
            f"of each class, a known image exchangeable with its own among the {count} calibration images is "
            f"rejected with probability at most {alpha:g} (split conformal, class by class)"
        )
    return (
        f"a known image exchangeable with the {count} calibration images is rejected with probability at "
        f"most {alpha:g} (split conformal)"
    )


def fixed_calibration(value: float) -> Calibration:
    """The record of a threshold that was given as a number."""
    return Calibration(
        value, "fixed", value, "nothing", False, 0, f"{_NONE}: the threshold is a number that was given"
    )


def misgivings(known: float | None, unknown: Mapping[str, float | None], whose: str) -> list[str]:
    """What is wrong with a threshold that rejects most known images, or lets most of an unknown set pass.

    Args:
        known: share of the known images rejected; None without any.
        unknown: unknown set -> the same.
        whose: which images these are, e.g. ``validation images``.

    Returns:
        One sentence for each finding, with what to do; none where the threshold serves.
    """
    found = []
    if known is not None and known > MANY:
        found.append(
            f"{known:.1%} of the known {whose} are rejected: most images are called unknown; calibrate on "
            "known images of the same origin (osr calibrate), or train longer"
        )
    for name, share in unknown.items():
        if share is not None and share < MANY:
            most = "nearly everything there is" if share < FEW else "most are"
            found.append(
                f"{share:.1%} of the {whose} of {name} are rejected: {most} called known; a higher "
                "model.alpha rejects more of them and of the known images, another model.score or a longer "
                "training may tell them apart"
            )
    return found
