"""Thresholds against hand-worked values, brute force and the guarantee they state."""

import numpy as np
import pytest

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Costs, calibrate, known_quantile, min_cost, optuna_search


def test_known_quantile_is_the_conformal_rank():
    scores = np.array([0.5, 0.1, 0.4, 0.2, 0.3, 0.9, 0.8, 0.7, 0.6])
    # n = 9: rank ceil(10 * 0.8) = 8 and ceil(10 * 0.9) = 9
    assert known_quantile(scores, 0.2) == 0.8
    assert known_quantile(scores, 0.1) == 0.9
    # 10 * 0.95 = 9.5 needs a tenth score: nothing may be rejected
    assert known_quantile(scores, 0.05) == np.finfo(np.float64).max


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_known_quantile_keeps_its_promise_on_average(alpha):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        scores = rng.exponential(size=60 + 400)
        shares.append(np.mean(scores[60:] > known_quantile(scores[:60], alpha)))
    # the exact expectation is alpha rounded down to a multiple of 1/61
    assert np.mean(shares) == pytest.approx(np.floor(alpha * 61) / 61, abs=0.006)


def _cost(threshold, scores, known, correct, costs):
    accepted = scores <= threshold
    return (
        costs.wrong_label * np.sum(accepted & known & ~correct)
        + costs.missed_unknown * np.sum(accepted & ~known)
        + costs.false_alarm * np.sum(~accepted & known)
    )


@pytest.mark.parametrize("costs", [Costs(), Costs(2.0, 0.5, 7.0), Costs(0, 1, 0), Costs(0, 0, 1)])
@pytest.mark.parametrize("seed", range(5))
def test_min_cost_is_the_best_of_all_thresholds(seed, costs):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, size=40).astype(float)  # with ties
    known = rng.random(40) < 0.6
    correct = rng.random(40) < 0.9
    threshold = min_cost(scores, known, correct, costs)
    candidates = [-1.0, *np.unique(scores)]
    best = min(_cost(t, scores, known, correct, costs) for t in candidates)
    assert _cost(threshold, scores, known, correct, costs) == pytest.approx(best)
    # among equally cheap thresholds the one that rejects least
    equally_cheap = [t for t in candidates if _cost(t, scores, known, correct, costs) == pytest.approx(best)]
    assert np.array_equal(scores > threshold, scores > max(equally_cheap))


def test_min_cost_lies_between_neighbours():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    known = np.array([True, True, False, False])
    assert min_cost(scores, known, known, Costs()) == 0.5


def test_optuna_search_maximises_total_accuracy_within_its_range():
    rng = np.random.default_rng(1)
    scores = np.concatenate([rng.uniform(0, 0.3, 200), rng.uniform(0.5, 0.95, 50)])
    known = np.arange(250) < 200
    threshold, trials = optuna_search(scores, known, known)
    assert len(trials) == 20
    assert all(0.1 <= t <= 0.9 for t, _ in trials)
    assert 0.3 <= threshold < 0.5
    assert max(value for _, value in trials) == np.mean((scores <= threshold) == known) == 1.0
    assert optuna_search(scores, known, known) == (threshold, trials)  # seeded


def test_calibrate_records_every_score_with_its_own_threshold():
    scores = {"msp": np.linspace(0, 1, 99), "energy": np.linspace(-50, -1, 99)}
    known = np.ones(99, dtype=bool)
    chosen, trials = calibrate(
        scores,
        known,
        known,
        method="known_quantile",
        alpha=0.05,
        costs=Costs(),
        calibrated_on="validation images",
        optimistic=False,
    )
    assert not trials
    assert chosen["msp"].value == scores["msp"][94]
    assert chosen["energy"].value == scores["energy"][94]
    assert chosen["energy"].target == 0.05
    assert "at most 0.05" in chosen["energy"].guarantee
    assert not chosen["energy"].optimistic


@pytest.mark.parametrize("method", ["max_accuracy", "min_cost", "optuna"])
def test_methods_that_need_unknowns_say_so(method):
    known = np.ones(5, dtype=bool)
    arguments = {"alpha": 0.05, "costs": Costs(), "calibrated_on": "validation images", "optimistic": False}
    with pytest.raises(UserError, match=f"{method} needs unknown images"):
        calibrate({"msp": np.zeros(5)}, known, known, method=method, **arguments)


def test_costs_are_not_negative():
    with pytest.raises(UserError, match="false_alarm"):
        Costs(false_alarm=-1.0)
