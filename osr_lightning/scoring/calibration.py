"""Calibration: from the scores of held-out images to a threshold, and a record of where it came from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError

CalibrationMethod = Literal["known_quantile", "max_accuracy", "min_cost", "optuna", "fixed"]
NEEDS_UNKNOWNS = frozenset({"max_accuracy", "min_cost", "optuna"})

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Costs:
    """What each kind of mistake costs, in any common unit (not negative).

    Args:
        wrong_label: a known image accepted with the wrong class.
        false_alarm: a known image rejected.
        missed_unknown: an unknown image accepted.
    """

    wrong_label: float = 1.0
    false_alarm: float = 1.0
    missed_unknown: float = 1.0

    def __post_init__(self) -> None:
        """Reject negative costs."""
        for name, value in asdict(self).items():
            if not value >= 0:
                raise UserError(f"the cost {name} must be a number not below 0, got {value}")


@dataclass(frozen=True)
class Calibration:
    """A threshold and its provenance; kept in the checkpoint and in ``results.json``.

    Attributes:
        value: the threshold, in units of the score.
        method: one of :data:`CalibrationMethod`.
        target: what the method aims at, e.g. the largest share of knowns to reject; null for none.
        calibrated_on: the images whose scores chose the value.
        optimistic: true if test images were among them.
        count_known: number of known images among them.
        guarantee: one sentence on what may be expected of the threshold.
    """

    value: float
    method: CalibrationMethod
    target: float | dict[str, float] | None
    calibrated_on: str
    optimistic: bool
    count_known: int
    guarantee: str


def known_quantile(known_scores: Floats, alpha: float) -> float:
    """The split-conformal threshold that rejects at most a share ``alpha`` of known images.

    It is the ``ceil((n + 1) (1 - alpha))``-th smallest of the ``n`` held-out known scores. If a new
    known image is exchangeable with them, ``P(score > threshold) <= alpha`` (Vovk et al. 2005;
    Angelopoulos & Bates 2023). With fewer than ``1 / alpha - 1`` scores no finite threshold has that
    guarantee and the largest float is returned: nothing is rejected.

    Args:
        known_scores: ``(n,)`` scores of known images that took no part in training.
        alpha: share in (0, 1).

    Returns:
        The threshold, in units of the score.
    """
    n = len(known_scores)
    rank = conformal_rank(n, alpha)
    if rank > n:
        return float(np.finfo(np.float64).max)
    return float(np.partition(known_scores, rank - 1)[rank - 1])


def conformal_rank(n: int, alpha: float) -> int:
    """``ceil((n + 1) (1 - alpha))``; above ``n`` where ``n`` scores are too few for ``alpha``."""
    # the small slack keeps the product from being rounded up past a whole number
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)


def min_cost(scores: Floats, known: Bools, correct: Bools, costs: Costs) -> float:
    """The threshold of least total cost, by an exact sweep over all distinct scores.

    Args:
        scores: ``(n,)`` scores of known and unknown images.
        known: ``(n,)`` whether each is of a known class.
        correct: ``(n,)`` whether the predicted class is the true one (ignored for unknowns).
        costs: the price of each mistake; all equal is the threshold of greatest total accuracy.

    Returns:
        The midpoint between the two neighbouring scores it separates; among equally cheap ones the
        largest, which rejects least.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    accepted_cost = np.where(known, np.where(correct, 0.0, costs.wrong_label), costs.missed_unknown)[order]
    rejected_cost = np.where(known, costs.false_alarm, 0.0)[order]
    # cost[i]: the i lowest scores are accepted, the rest is rejected
    cost = np.concatenate([[0.0], np.cumsum(accepted_cost)])
    cost += np.concatenate([np.cumsum(rejected_cost[::-1])[::-1], [0.0]])
    cuts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(ranked) > 0), [len(ranked)]])
    best = cuts[np.flatnonzero(cost[cuts] <= cost[cuts].min() + 1e-9)[-1]]
    if best == 0:
        return float(np.nextafter(ranked[0], -np.inf))
    if best == len(ranked):
        return float(ranked[-1])
    middle = (ranked[best - 1] + ranked[best]) / 2
    # between adjacent floats the midpoint may round up to the image that is to be rejected
    return float(middle if middle < ranked[best] else ranked[best - 1])


def optuna_search(
    scores: Floats, known: Bools, correct: Bools, *, trials: int = 20, seed: int = 10
) -> tuple[float, list[tuple[float, float]]]:
    """The notebook's threshold search: TPE over a confidence threshold in [0.1, 0.9].

    Maximises total accuracy: a known image counts when accepted with its class, an unknown one when
    rejected. The score must be ``msp``, whose threshold is one minus the confidence threshold. It
    works on stored scores, so a trial costs no forward pass.

    Args:
        scores: ``(n,)`` ``msp`` scores in [0, 1].
        known: ``(n,)`` whether each is of a known class.
        correct: ``(n,)`` whether the predicted class is the true one.
        trials: number of trials.
        seed: of the TPE sampler.

    Returns:
        The score threshold of the best trial, and every trial as (score threshold, total accuracy).
    """
    import optuna

    def total_accuracy(trial: optuna.Trial) -> float:
        rejected = scores > 1 - trial.suggest_float("confidence_threshold", 0.1, 0.9)
        return float(np.mean(np.where(known, correct & ~rejected, rejected)))

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        study.optimize(total_accuracy, n_trials=trials)
    finally:
        optuna.logging.set_verbosity(verbosity)
    history = [(1 - t.params["confidence_threshold"], float(t.values[0])) for t in study.trials]
    return 1 - study.best_params["confidence_threshold"], history


def calibrate(
    scores: dict[str, Floats],
    known: Bools,
    correct: Bools,
    *,
    method: CalibrationMethod,
    alpha: float,
    costs: Costs,
    calibrated_on: str,
    optimistic: bool,
) -> tuple[dict[str, Calibration], list[tuple[float, float]]]:
    """Choose a threshold for every score, so that a change of score finds its own.

    Args:
        scores: score name -> ``(n,)`` values.
        known: ``(n,)`` whether each image is of a known class.
        correct: ``(n,)`` whether the predicted class is the true one.
        method: how, ``fixed`` excepted; ``optuna`` serves the score ``msp`` only.
        alpha: the share that ``known_quantile`` may reject.
        costs: the prices that ``min_cost`` weighs.
        calibrated_on: said of the images in the record.
        optimistic: whether test images are among them.

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
    count = int(known.sum())
    trials: list[tuple[float, float]] = []
    chosen: dict[str, Calibration] = {}

    def record(score: str, value: float, target: float | dict[str, float] | None, guarantee: str) -> None:
        chosen[score] = Calibration(value, method, target, calibrated_on, optimistic, count, guarantee)

    for score, values in scores.items():
        if method == "known_quantile":
            record(
                score,
                known_quantile(values[known], alpha),
                alpha,
                f"a known image exchangeable with the {count} calibration images is rejected with "
                f"probability at most {alpha:g} (split conformal)",
            )
        elif method == "max_accuracy":
            text = "the greatest total accuracy on the calibration images; no guarantee beyond them"
            record(score, min_cost(values, known, correct, Costs()), None, text)
        elif method == "min_cost":
            text = "the least total cost on the calibration images; no guarantee beyond them"
            record(score, min_cost(values, known, correct, costs), asdict(costs), text)
        elif score == "msp":
            value, trials = optuna_search(values, known, correct)
            record(
                score,
                value,
                None,
                "the best of 20 trials on the calibration images; no guarantee beyond them",
            )
    return chosen, trials


def fixed_calibration(value: float) -> Calibration:
    """The record of a threshold that was given as a number."""
    return Calibration(
        value, "fixed", value, "nothing", False, 0, "none: the threshold is a number that was given"
    )
