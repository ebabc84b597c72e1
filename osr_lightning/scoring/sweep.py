"""Thresholds by search: the exact sweep over all distinct scores, and the notebook's trials."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError
from osr_lightning.scoring.decision import is_unknown

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


def min_cost(
    scores: Floats, known: Bools, correct: Bools, costs: Costs, unknown_prior: float | None = None
) -> float:
    """The threshold of least total cost, by an exact sweep over all distinct scores.

    Args:
        scores: ``(n,)`` scores of known and unknown images.
        known: ``(n,)`` whether each is of a known class.
        correct: ``(n,)`` whether the predicted class is the true one (ignored for unknowns).
        costs: the price of each mistake; all equal is the threshold of greatest total accuracy.
        unknown_prior: share of unknown images to expect, to which the images are weighed; their own share
            if not given.

    Returns:
        The midpoint between the two neighbouring scores it separates; among equally cheap ones the
        largest, which rejects least.
    """
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    accepted_cost = np.where(known, np.where(correct, 0.0, costs.wrong_label), costs.missed_unknown)[order]
    rejected_cost = np.where(known, costs.false_alarm, 0.0)[order]
    if unknown_prior is not None:
        share = np.mean(~known)
        weight = np.where(known, (1 - unknown_prior) / (1 - share), unknown_prior / share)[order]
        accepted_cost, rejected_cost = accepted_cost * weight, rejected_cost * weight
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


def optuna_search(scores: Floats, known: Bools, correct: Bools) -> tuple[float, list[tuple[float, float]]]:
    """The notebook's threshold search: 20 trials of TPE over a confidence threshold in [0.1, 0.9].

    Maximises total accuracy: a known image counts when accepted with its class, an unknown one when
    rejected. The score must be ``msp``, whose threshold is one minus the confidence threshold. It
    works on stored scores, so a trial costs no forward pass.

    Args:
        scores: ``(n,)`` ``msp`` scores in [0, 1].
        known: ``(n,)`` whether each is of a known class.
        correct: ``(n,)`` whether the predicted class is the true one.

    Returns:
        The score threshold of the best trial, and every trial as (score threshold, total accuracy).
    """
    import optuna

    def total_accuracy(trial: optuna.Trial) -> float:
        rejected = is_unknown(scores, 1 - trial.suggest_float("confidence_threshold", 0.1, 0.9))
        return float(np.mean(np.where(known, correct & ~rejected, rejected)))

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=10))
        study.optimize(total_accuracy, n_trials=20)
    finally:
        optuna.logging.set_verbosity(verbosity)
    history = [(1 - t.params["confidence_threshold"], float(t.values[0])) for t in study.trials]
    return 1 - study.best_params["confidence_threshold"], history
