"""Conformal p-values against their formula, and false discoveries by simulation."""

from dataclasses import replace

import numpy as np
import pytest

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration, fixed_calibration, order_statistics, read_record
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.p_values import (
    check_rate,
    describe_rate,
    false_discovery_threshold,
    p_values,
    places,
)

DRAWS = 1000


def calibration_of(known):
    record = Calibration(0.0, "known_quantile", 0.05, "some images", False, len(known), "none")
    return replace(record, known_scores=order_statistics(known))


def formula(known, scores):
    return (1 + (known[:, None] >= scores).sum(axis=0)) / (len(known) + 1)


@pytest.mark.parametrize("digits", [15, 1])
@pytest.mark.parametrize("n", [1, 2, 19, 1000])
def test_it_is_the_share_of_known_scores_that_are_as_great(n, digits):
    rng = np.random.default_rng(n)
    known, scores = rng.normal(size=n).round(digits), rng.normal(size=500).round(digits)
    scores = np.append(scores, [np.inf, -np.inf, *known])
    np.testing.assert_array_equal(p_values(calibration_of(known), scores), formula(known, scores))


@pytest.mark.parametrize("digits", [15, 1])
@pytest.mark.parametrize("n", [1001, 1500, 2000, 2777, 30_000])
def test_where_not_all_scores_are_kept_it_is_never_too_small_and_hardly_too_large(n, digits):
    rng = np.random.default_rng(n)
    known, scores = rng.normal(size=n).round(digits), rng.normal(size=2000).round(digits)
    found, exact = p_values(calibration_of(known), scores), formula(known, scores)
    assert (found >= exact - 1e-15).all()
    assert digits == 1 or (found - exact).max() <= 1 / 1000  # of ties, more may be thought as great
    assert found.min() < 2 / 1000


def test_what_is_no_number_looks_strangest_and_nothing_without_scores_of_known_images():
    assert p_values(calibration_of(np.arange(9.0)), np.array([np.nan, 8.5, -1]))[:2].tolist() == [0.1, 0.1]
    for record in (fixed_calibration(1.0), replace(calibration_of(np.arange(9.0)), known_scores=())):
        assert np.isnan(p_values(record, np.arange(3.0))).all()


def test_more_scores_than_known_images_are_damaged():
    with pytest.raises(TypeError, match="3 scores of 2 known images"):
        read_record({**vars(calibration_of(np.arange(3.0))), "count_known": 2})


@pytest.mark.parametrize("digits", [15, 0])
@pytest.mark.parametrize("n", [9, 100, 1500])
def test_known_images_get_a_small_p_value_as_rarely_as_it_says(n, digits):
    rng = np.random.default_rng(0)
    known = rng.normal(size=(DRAWS, n)).round(digits)
    new = rng.normal(size=(DRAWS, 20)).round(digits)
    found = np.array([p_values(calibration_of(a), b) for a, b in zip(known, new, strict=True)])
    for alpha in (0.01, 0.1, 0.5):
        share = (found <= alpha).mean(axis=1)  # of one calibration set, whose images depend on each other
        assert share.mean() <= alpha + 3 * share.std() / DRAWS**0.5


# false discoveries ------------------------------------------------------------------------------------


def threshold_of(record, scores, rate):
    counts = np.bincount(places(record, scores), minlength=len(record.known_scores) + 1)
    return false_discovery_threshold(record, counts, rate, float(scores.max()))


def benjamini_hochberg(p, rate):
    """Which are rejected, as the paper has it: the greatest ``i`` with ``p_(i) <= i rate / m``, and below."""
    ordered = np.sort(p)
    serves = np.flatnonzero(ordered <= rate * np.arange(1, len(p) + 1) / len(p) + 1e-12)
    return p <= (ordered[serves[-1]] if len(serves) else -1)


@pytest.mark.parametrize("digits", [15, 1, 0])
@pytest.mark.parametrize("n", [5, 60, 1300])
@pytest.mark.parametrize("unknown", [0, 1, 30])
def test_the_threshold_rejects_what_the_procedure_rejects(n, digits, unknown):
    rng = np.random.default_rng(n + unknown)
    rejected = 0
    for rate in (0.02, 0.1, 0.3, 0.9) * 10:
        record = calibration_of(rng.normal(size=n).round(digits))
        scores = np.append(rng.normal(size=80), rng.normal(3, 1, unknown)).round(digits)
        found = is_unknown(scores, threshold_of(record, scores, rate))
        np.testing.assert_array_equal(found, benjamini_hochberg(p_values(record, scores), rate))
        rejected += found.sum()
    assert rejected or unknown < 30


@pytest.mark.parametrize("digits", [15, 1, 0])
@pytest.mark.parametrize(
    ("n", "images", "share"), [(19, 40, 0.5), (100, 50, 0.9), (250, 500, 0.1), (3000, 200, 0.3)]
)
def test_of_the_alarms_at_most_a_tenth_are_false(n, images, share, digits):
    rng = np.random.default_rng(n)
    false, found = [], 0
    unknown = np.arange(images) < share * images
    for _ in range(DRAWS):
        record = calibration_of(rng.normal(size=n).round(digits))
        scores = (rng.normal(size=images) + 3.5 * unknown).round(digits)
        alarms = is_unknown(scores, threshold_of(record, scores, 0.1))
        false.append((alarms & ~unknown).sum() / max(1, alarms.sum()))
        found += (alarms & unknown).sum()
    assert np.mean(false) <= 0.1 * (1 - share) + 3 * np.std(false) / DRAWS**0.5
    assert found > 0


def test_without_unknown_images_alarms_are_rare():
    rng = np.random.default_rng(0)
    draws = ((calibration_of(rng.normal(size=100)), rng.normal(size=30)) for _ in range(DRAWS))
    alarms = [is_unknown(scores, threshold_of(record, scores, 0.1)).any() for record, scores in draws]
    assert 0 < np.mean(alarms) <= 0.1 + 3 * 0.3 / DRAWS**0.5


def test_what_it_needs_is_said():
    record = calibration_of(np.arange(99.0))
    said = describe_rate(record, 1000, 0, 0.1, 99.0)
    assert said.startswith(
        "none is unknown at a false discovery rate of 0.1, which needs at least 100 of 1,000"
    )
    for count, any_unknown in ((99, False), (100, True)):
        scores = np.append(np.full(count, 100.0), np.zeros(1000 - count))
        assert is_unknown(scores, threshold_of(record, scores, 0.1)).any() == any_unknown
    assert "score above 98" in describe_rate(record, 1000, 100, 0.1, threshold_of(record, scores, 0.1))


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_a_rate_that_cannot_be_had_is_refused(rate):
    with pytest.raises(UserError, match="--fdr must lie between 0 and 1"):
        check_rate(calibration_of(np.arange(9.0)), rate)
    with pytest.raises(UserError, match="its threshold is a number that was given; run osr calibrate"):
        check_rate(fixed_calibration(1.0), 0.1)
    with pytest.raises(UserError, match="as an earlier version wrote it; run osr calibrate"):
        check_rate(replace(calibration_of(np.arange(9.0)), known_scores=()), 0.1)
