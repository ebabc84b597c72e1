"""Thresholds against hand-worked values, brute force and the guarantee they state."""

import re
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import (
    Calibration,
    calibrate,
    fixed_calibration,
    misgivings,
    order_statistics,
)
from osr_lightning.scoring.quantile import check_alpha, conformal_rank, known_quantile
from osr_lightning.scoring.sweep import Costs, min_cost, optuna_search

ALPHAS = [0.002, 0.005, 0.01, 0.03, 0.05, 0.1, 0.25, 0.3, 0.7]


def exact_rank(n, alpha):
    """``ceil((n + 1) (1 - alpha))`` of the decimal number that was typed, in whole numbers."""
    return -((n + 1) * (Fraction(str(alpha)) - 1) // 1)


def test_known_quantile_is_the_conformal_rank():
    scores = np.array([0.5, 0.1, 0.4, 0.2, 0.3, 0.9, 0.8, 0.7, 0.6])
    # n = 9: rank ceil(10 * 0.8) = 8 and ceil(10 * 0.9) = 9
    assert known_quantile(scores, 0.2) == 0.8
    assert known_quantile(scores, 0.1) == 0.9
    # 10 * 0.95 = 9.5 needs a tenth score
    with pytest.raises(UserError, match=r"alpha 0\.05 needs 19 validation images, there are 9"):
        known_quantile(scores, 0.05)


def test_the_rank_is_exact_for_every_number_of_images():
    for alpha in ALPHAS:
        for n in range(3000):
            assert conformal_rank(n, alpha) == exact_rank(n, alpha), (alpha, n)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_too_few_images_are_refused_and_the_number_needed_is_the_least_that_serves(alpha):
    enough = next(n for n in range(3000) if exact_rank(n, alpha) <= n)
    known_quantile(np.arange(enough) / 7, alpha)
    with pytest.raises(UserError, match=f"needs {enough:,} validation images, there are {enough - 1:,};"):
        known_quantile(np.arange(enough - 1) / 7, alpha)


def test_the_sentence_for_too_few_images():
    sentence = (
        "alpha 0.002 needs 499 validation images, there are 322; the smallest possible is 0.0031: "
        "raise model.alpha or data.val_fraction"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        known_quantile(np.arange(322.0), 0.002)
    with pytest.raises(UserError, match="needs 9,999 validation images, there are 1,234;"):
        check_alpha(0.0001, 1234)


def test_the_smallest_alpha_that_is_printed_is_accepted_and_hardly_above_the_bound():
    for images in [*range(1, 2000), 9999, 12_345, 99_999, 10**6 - 1]:
        with pytest.raises(UserError) as caught:
            check_alpha(1e-9, images)
        printed = float(re.search(r"smallest possible is (\S+):", str(caught.value)).group(1))
        check_alpha(printed, images)
        # two digits: at most a tenth above 1 / (n + 1)
        assert printed <= 1.1 / (images + 1) + 1e-12, images


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_known_quantile_keeps_its_promise_on_average(alpha):
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        scores = rng.exponential(size=60 + 400)
        shares.append(np.mean(scores[60:] > known_quantile(scores[:60], alpha)))
    # the exact expectation is alpha rounded down to a multiple of 1/61
    assert np.mean(shares) == pytest.approx(np.floor(alpha * 61) / 61, abs=0.006)


def _cost(threshold, scores, known, correct, costs, prior=None):
    """The expected cost of one image, in knowns and unknowns apart, mixed as ``prior`` says."""
    accepted = scores <= threshold
    of_known = costs.wrong_label * np.mean(accepted[known] & ~correct[known]) + costs.false_alarm * np.mean(
        ~accepted[known]
    )
    of_unknown = costs.missed_unknown * np.mean(accepted[~known])
    prior = np.mean(~known) if prior is None else prior
    return (1 - prior) * of_known + prior * of_unknown


@pytest.mark.parametrize("costs", [Costs(), Costs(2.0, 0.5, 7.0), Costs(0, 1, 0), Costs(0, 0, 1)])
@pytest.mark.parametrize("prior", [None, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_min_cost_is_the_best_of_all_thresholds(seed, prior, costs):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, size=40).astype(float)  # with ties
    known = rng.random(40) < 0.6
    correct = rng.random(40) < 0.9
    arguments = (scores, known, correct, costs, prior)
    threshold = min_cost(*arguments)
    candidates = [-1.0, *np.unique(scores)]
    best = min(_cost(t, *arguments) for t in candidates)
    assert _cost(threshold, *arguments) == pytest.approx(best)
    # among equally cheap thresholds the one that rejects least
    equally_cheap = [t for t in candidates if _cost(t, *arguments) == pytest.approx(best)]
    assert np.array_equal(scores > threshold, scores > max(equally_cheap))


def test_min_cost_lies_between_neighbours():
    scores = np.array([0.1, 0.2, 0.8, 0.9])
    known = np.array([True, True, False, False])
    assert min_cost(scores, known, known, Costs()) == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_the_images_own_share_as_prior_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    known, correct = rng.random(50) < 0.7, rng.random(50) < 0.9
    scores, costs = rng.normal(size=50) + ~known, Costs(1, 2, 3)
    prior = float(np.mean(~known))
    assert min_cost(scores, known, correct, costs, prior) == min_cost(scores, known, correct, costs)


def test_few_knowns_among_many_unknowns_are_not_all_rejected():
    # 5 knowns below 0.5, and 1000 unknowns of which one in twenty lies there too
    scores = np.concatenate(
        [[0.1, 0.2, 0.3, 0.35, 0.4], np.linspace(0.05, 0.45, 50), np.linspace(0.6, 1, 950)]
    )
    known = np.arange(1005) < 5
    everything = min_cost(scores, known, known, Costs())
    assert (scores[known] > everything).all()  # by number, five false alarms are the cheapest
    even = min_cost(scores, known, known, Costs(), unknown_prior=0.5)
    assert not (scores[known] > even).any()
    # between the last known and the next unknown, the 43rd step of 0.4 / 49 from 0.05
    assert even == pytest.approx((0.4 + (0.05 + 43 * 0.4 / 49)) / 2)


def test_neighbouring_floats_are_told_apart():
    low = 1.0
    high = np.nextafter(low, 2)
    known = np.array([True, False])
    threshold = min_cost(np.array([low, high]), known, known, Costs())
    assert low <= threshold < high


def test_where_all_are_to_be_rejected_the_threshold_lies_below_them():
    scores, known = np.array([0.5, 0.7]), np.array([False, False])
    assert min_cost(scores, known, known, Costs()) < 0.5
    assert min_cost(scores, ~known, ~known, Costs()) == 0.7


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
        unknown_prior=0.5,
        calibrated_on="validation images",
        optimistic=False,
    )
    assert not trials
    assert chosen["msp"].value == scores["msp"][94]
    assert chosen["energy"].value == scores["energy"][94]
    assert chosen["energy"].target == 0.05
    assert "at most 0.05" in chosen["energy"].guarantee
    assert not chosen["energy"].optimistic


ARGUMENTS = {
    "alpha": 0.05,
    "costs": Costs(1, 2, 3),
    "unknown_prior": 0.25,
    "calibrated_on": "these images",
    "optimistic": True,
}


@pytest.mark.parametrize("method", ["known_quantile", "max_accuracy", "min_cost", "optuna"])
def test_a_record_says_what_its_threshold_does_to_the_images_that_chose_it(method):
    rng = np.random.default_rng(0)
    known = np.arange(300) < 200
    scores = {"msp": np.where(known, rng.uniform(0, 0.6, 300), rng.uniform(0.3, 0.95, 300))}
    if method != "optuna":
        scores["energy"] = 40 * scores["msp"] ** 2 - 60
    correct = known & (rng.random(300) < 0.9)
    chosen, trials = calibrate(scores, known, correct, method=method, **ARGUMENTS)
    assert len(trials) == (20 if method == "optuna" else 0)
    assert chosen.keys() == scores.keys()
    for name, record in chosen.items():
        values = scores[name]
        assert record.method == method
        assert (record.calibrated_on, record.optimistic) == ("these images", True)
        assert (record.count_known, record.count_unknown) == (200, 100)
        assert record.rejected_known == np.sum(values[:200] > record.value) / 200
        assert record.rejected_unknown == np.sum(values[200:] > record.value) / 100
        assert 0 < record.rejected_unknown < 1
        assert record.guarantee
        assert record.known_scores == tuple(np.sort(values[:200]))
        left_out = {"known_scores", "class_shifts"}
        assert record.summary() == {n: v for n, v in asdict(record).items() if n not in left_out}
    record = chosen["msp"]
    if method == "known_quantile":
        assert record.rejected_known <= 0.05
        assert record.value == np.sort(scores["msp"][:200])[190]  # rank ceil(201 * 0.95) = 191
    elif method != "optuna":
        costs = Costs() if method == "max_accuracy" else Costs(1, 2, 3)
        assert record.target == (None if method == "max_accuracy" else asdict(costs))
        assert "25% unknown" in record.guarantee
        best = min(_cost(t, scores["msp"], known, correct, costs, 0.25) for t in [-1, *scores["msp"]])
        assert _cost(record.value, scores["msp"], known, correct, costs, 0.25) == pytest.approx(best)


@pytest.mark.parametrize(("n", "count"), [(0, 7), (5, 7), (7, 7), (8, 7), (1000, 7), (2500, 1000)])
def test_few_order_statistics_stand_for_all_scores(n, count):
    scores = np.random.default_rng(n).normal(size=n)
    kept = order_statistics(scores, count)
    assert len(kept) == min(n, count)
    assert set(kept) <= set(scores)
    assert list(kept) == sorted(kept)
    for score in scores:
        assert abs(np.mean(np.array(kept) <= score) - np.mean(scores <= score)) <= 0.5 / count + 1 / n


def test_a_record_without_unknown_images_has_no_share_of_them():
    known = np.ones(40, dtype=bool)
    chosen, _ = calibrate({"msp": np.arange(40.0)}, known, known, method="known_quantile", **ARGUMENTS)
    assert chosen["msp"].rejected_unknown is None
    assert chosen["msp"].count_unknown == 0
    assert chosen["msp"].rejected_known == 1 / 40  # rank ceil(41 * 0.95) = 39 of 40


@pytest.mark.parametrize("method", ["known_quantile", "max_accuracy"])
def test_without_known_images_there_is_nothing_to_calibrate_on(method):
    none = np.zeros(5, dtype=bool)
    with pytest.raises(UserError, match=f"{method} needs known images, and there are none in these images"):
        calibrate({"msp": np.zeros(5)}, none, none, method=method, **ARGUMENTS)


def test_a_given_number_is_its_own_record():
    record = fixed_calibration(0.25)
    assert record == Calibration(0.25, "fixed", 0.25, "nothing", False, 0, record.guarantee)
    assert "given" in record.guarantee
    assert record.rejected_known is record.rejected_unknown is None


@pytest.mark.parametrize(
    ("known", "unknown", "found"),
    [
        (0.05, {"cifar10": 0.9}, []),
        (0.5, {"cifar10": 0.5}, []),  # at the bounds it still serves
        # every set that mostly passes, though another is worse
        (
            0.05,
            {"near": 0.17, "nearer": 0.04, "far": 0.9},
            [
                "17.0% of the test images of near are rejected",
                "4.0% of the test images of nearer are rejected",
            ],
        ),
        (0.501, {}, ["50.1% of the known test images are rejected"]),
        (
            0.0,
            {"cifar10": 0.04, "noise": 0.0, "known": 0.9},  # a set may have any name
            [
                "4.0% of the test images of cifar10 are rejected",
                "0.0% of the test images of noise are rejected",
            ],
        ),
        (None, {"cifar10": None}, []),
    ],
)
def test_misgivings_about_thresholds_that_hardly_decide(known, unknown, found):
    sentences = misgivings(known, unknown, "test images")
    assert [sentence.partition(":")[0] for sentence in sentences] == found
    assert all(
        "osr calibrate" in sentence or "model.alpha" in sentence for sentence in sentences
    )  # what to do


@pytest.mark.parametrize("method", ["max_accuracy", "min_cost", "optuna"])
def test_methods_that_need_unknowns_say_so(method):
    known = np.ones(5, dtype=bool)
    with pytest.raises(UserError, match=f"{method} needs unknown images.*data.calibration_unknown"):
        calibrate({"msp": np.zeros(5)}, known, known, method=method, **ARGUMENTS)


def test_costs_are_not_negative():
    for value in (-1.0, float("nan")):
        with pytest.raises(UserError, match="false_alarm"):
            Costs(false_alarm=value)
