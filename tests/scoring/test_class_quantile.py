"""A threshold for each class: hand-worked values, and the promise that it states."""

import numpy as np
import pytest

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import calibrate, read_record
from osr_lightning.scoring.class_quantile import Predicted, class_shifts
from osr_lightning.scoring.sweep import Costs

NAMES = ("a", "b")


def test_each_class_has_the_quantile_of_its_own_images():
    scores = np.r_[np.arange(1.0, 10), np.arange(10.0, 100, 10)]  # 9 of each
    labels = np.repeat([0, 1], 9)
    common, shifts = class_shifts(scores, Predicted(labels, labels, NAMES), 0.2)
    # rank ceil(10 * 0.8) = 8 of 9, and ceil(19 * 0.8) = 16 of 18
    assert common == 70.0
    np.testing.assert_allclose(common - shifts, [8.0, 80.0])
    rejected = scores + shifts[labels] > common
    assert rejected.nonzero()[0].tolist() == [8, 17]


def test_a_threshold_is_raised_for_those_that_are_taken_for_another_class():
    scores = np.r_[np.arange(1.0, 10), np.arange(10.0, 100, 10)]
    labels = np.repeat([0, 1], 9)
    predicted = labels.copy()
    predicted[[9, 10]] = 0  # scores 10 and 20 of b are named a, whose threshold is 8
    common, shifts = class_shifts(scores, Predicted(labels, predicted, NAMES), 0.2)
    # b may have 9 - 8 - 1 = 0 rejected: steps of 2 (10), 10 (20 - 10) and 10 (90 - 80)
    np.testing.assert_allclose(common - shifts, [20.0, 90.0])
    assert not (scores + shifts[predicted] > common).any()


def test_an_image_at_the_threshold_of_its_class_is_accepted_whatever_is_rounded():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.lognormal(0, 3, 60)
        labels = np.arange(60) % 3
        common, shifts = class_shifts(scores, Predicted(labels, labels, ("a", "b", "c")), 0.1)
        rejected = scores + shifts[labels] > common
        assert np.bincount(labels[rejected], minlength=3).tolist() == [1, 1, 1]  # 20 - ceil(21 * 0.9)


@pytest.mark.parametrize("error", [0.0, 0.1])
def test_the_promise_holds_for_every_class_over_a_thousand_deployments(error):
    rng = np.random.default_rng(1)

    def draw(count):
        labels = rng.integers(0, 3, count)
        wrong = rng.random(count) < error
        predicted = np.where(wrong, (labels + rng.integers(1, 3, count)) % 3, labels)
        return rng.gamma(2, 1 + labels) + wrong * rng.random(count) * 4, labels, predicted

    shares = []
    for _ in range(1000):
        scores, labels, predicted = draw(150)
        common, shifts = class_shifts(scores, Predicted(labels, predicted, "abc"), 0.1)
        scores, labels, predicted = draw(600)
        rejected = scores + shifts[predicted] > common
        shares.append([rejected[labels == label].mean() for label in range(3)])
    mean, error_of_mean = np.mean(shares, axis=0), np.std(shares, axis=0) / 1000**0.5
    assert (mean <= 0.1 + 2.6 * error_of_mean).all()
    if not error:
        assert (mean >= 0.07).all()


def test_a_class_with_too_few_images_is_refused_or_shares_the_common_threshold():
    scores = np.arange(30.0)
    labels = np.r_[np.zeros(25, int), np.ones(5, int)]
    with pytest.raises(UserError, match=r"needs 9 validation images of each class, and there are b 5: raise"):
        class_shifts(scores, Predicted(labels, labels, NAMES), 0.1)
    common, shifts = class_shifts(scores, Predicted(labels, labels, NAMES, True), 0.1)
    assert shifts[1] == 0.0
    assert common - shifts[0] == 23.0  # rank ceil(26 * 0.9) = 24


def test_the_record_keeps_shifted_scores():
    scores = np.r_[np.arange(1.0, 21), np.arange(100.0, 120)]
    labels = np.repeat([0, 1], 20)
    chosen, _ = calibrate(
        {"msp": scores},
        labels < 2,
        labels < 2,
        method="class_quantile",
        alpha=0.1,
        costs=Costs(),
        unknown_prior=0.5,
        calibrated_on="x",
        optimistic=False,
        predicted=Predicted(labels, labels, NAMES),
    )
    record = chosen["msp"]
    np.testing.assert_allclose(record.class_thresholds, [19.0, 118.0])
    shifted = scores + np.array(record.class_shifts)[labels]
    np.testing.assert_array_equal(record.known_scores, np.sort(shifted))
    assert record.rejected_known == 2 / 40
    assert record.guaranteed
    assert "of each class" in record.guarantee
    assert read_record(vars(record)) == record
    assert record.summary(NAMES)["class_thresholds"] == dict(zip(NAMES, record.class_thresholds, strict=True))
    with pytest.raises(TypeError, match="class_shifts"):
        read_record({**vars(record), "class_shifts": [1.0, float("nan")]})
