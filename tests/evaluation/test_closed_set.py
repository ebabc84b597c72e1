"""The measures of the known images alone, against hand-worked values and brute force."""

import itertools

import numpy as np
import pytest

from osr_lightning.evaluation.measures.closed_set import aurc, ece


def test_aurc_hand_worked():
    # the tie of 3s holds one mistake in two: risks 0, 1/2, 1.5/3, 2/4
    wrong_in_tie = np.array([True, False, True, False])
    found = aurc(np.array([1.0, 2.0, 3.0, 3.0]), wrong_in_tie)
    assert found == pytest.approx((0 + 1 / 2 + 1 / 2 + 1 / 2) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_aurc_is_the_mean_over_all_orders_of_the_ties(seed):
    rng = np.random.default_rng(seed)
    score, correct = rng.integers(0, 3, 7).astype(float), rng.random(7) < 0.6

    def one_order(order):
        errors = ~correct[list(order)]
        return np.mean(np.cumsum(errors) / np.arange(1, 8))

    orders = [o for o in itertools.permutations(range(7)) if (np.diff(score[list(o)]) >= 0).all()]
    assert aurc(score, correct) == pytest.approx(np.mean([one_order(o) for o in orders]), abs=1e-9)


def test_ece_hand_worked():
    # bins (0.4, 0.6] with accuracy 1/2 and mean confidence 0.55, and (0.8, 1] with 1 and 0.9
    confidence = np.array([0.5, 0.6, 1.0, 0.8 + 1e-12])
    correct = np.array([True, False, True, True])
    assert ece(confidence, correct, bins=5) == pytest.approx((2 * 0.05 + 2 * 0.1) / 4)
    assert ece(np.array([0.0, 1.0]), np.array([False, True])) == 0


@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_a_loop_over_its_bins(seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(200), rng.random(200) < 0.7
    expected = 0.0
    for low in np.arange(15) / 15:
        mask = (confidence > low) & (confidence <= low + 1 / 15)
        if mask.any():
            expected += mask.mean() * abs(correct[mask].mean() - confidence[mask].mean())
    assert ece(confidence, correct) == pytest.approx(expected, abs=1e-9)


def test_an_empty_closed_set_leaves_its_measures_undefined():
    assert aurc(np.zeros(0), np.zeros(0, bool)) is None
    assert ece(np.zeros(0), np.zeros(0, bool)) is None
