"""Every measure against hand-worked values, scikit-learn and brute force, with ties and without."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from osr_lightning.evaluation import measures
from osr_lightning.evaluation.acceptance import acceptance

# four known images (one of them misclassified) and two unknown, with a tie across the classes
SCORE = np.array([1.0, 2.0, 3.0, 3.0, 3.0, 4.0])
UNKNOWN = np.array([False, False, False, False, True, True])
CORRECT = np.array([True, False, True, True, False, False])
RANKING = ("auroc", "aupr_unknown", "aupr_known", "fpr95_known", "fpr95_unknown", "detection_error")


def drawn(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, unknown and correct of a random set; ties are plentiful or absent."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(20, 80))
    score = rng.integers(0, 8, size).astype(float) if ties else rng.normal(size=size)
    unknown = rng.random(size) < rng.uniform(0.2, 0.8)
    unknown[:2] = [True, False]
    return score + 0.7 * unknown * (not ties), unknown, rng.random(size) < 0.8


random_sets = pytest.mark.parametrize(("seed", "ties"), [*itertools.product(range(8), (True, False))])


def test_hand_worked_values():
    assert measures.auroc(SCORE, UNKNOWN) == pytest.approx(7 / 8)
    assert measures.oscr(SCORE, UNKNOWN, CORRECT) == pytest.approx(5 / 8)
    # of 8 pairs the rightly classified known at 1, 3 and 3 win 2 + 1.5 + 1.5
    assert measures.openauc(SCORE, UNKNOWN, CORRECT) == pytest.approx(5 / 8)
    # all four known are needed for 95%: threshold 3, which one unknown does not exceed
    assert measures.fpr95_known(SCORE, UNKNOWN) == 1 / 2
    # both unknown are needed: everything from 3 up is rejected, two known with them
    assert measures.fpr95_unknown(SCORE, UNKNOWN) == 1 / 2
    assert measures.detection_error(SCORE, UNKNOWN) == pytest.approx(1 / 4)
    # precision 1 at 4 (half the recall), then 2 of 4 at 3
    assert measures.aupr_unknown(SCORE, UNKNOWN) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)
    # the tie of 3s holds one mistake in two: risks 0, 1/2, 1.5/3, 2/4
    wrong_in_tie = np.array([True, False, True, False])
    assert measures.aurc(SCORE[:4], wrong_in_tie) == pytest.approx((0 + 1 / 2 + 1 / 2 + 1 / 2) / 4)


@random_sets
def test_ranking_measures_equal_scikit_learn(seed, ties):
    score, unknown, _ = drawn(seed, ties)
    assert measures.auroc(score, unknown) == pytest.approx(metrics.roc_auc_score(unknown, score), abs=1e-9)
    for name, positive, ordered in (("unknown", unknown, score), ("known", ~unknown, -score)):
        measure = getattr(measures, f"aupr_{name}")
        expected = metrics.average_precision_score(positive, ordered)
        assert measure(score, unknown) == pytest.approx(expected, abs=1e-9)
        share = np.where(unknown, 0.5 / unknown.mean(), 0.5 / (~unknown).mean())
        expected = metrics.average_precision_score(positive, ordered, sample_weight=share)
        assert measure(score, unknown, share=0.5) == pytest.approx(expected, abs=1e-9)


def test_aupr_at_half_equals_that_of_a_set_filled_up_to_half():
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 9, 30), rng.integers(3, 12, 10)
    score, label = np.concatenate([known, unknown]).astype(float), np.repeat([False, True], [30, 10])
    filled = np.concatenate([known, *[unknown] * 3]).astype(float)
    expected = measures.aupr_unknown(filled, np.repeat([False, True], 30))
    assert measures.aupr_unknown(score, label, share=0.5) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5])
def test_aupr_refuses_an_impossible_share(share):
    with pytest.raises(ValueError, match="share must lie between 0 and 1"):
        measures.aupr_unknown(SCORE, UNKNOWN, share=share)


@random_sets
def test_oscr_is_the_share_of_pairs_that_a_rightly_classified_known_image_wins(seed, ties):
    score, unknown, correct = drawn(seed, ties)
    pairs = [
        right * ((k < u) + (k == u) / 2)
        for k, right in zip(score[~unknown], correct[~unknown], strict=True)
        for u in score[unknown]
    ]
    assert measures.oscr(score, unknown, correct) == pytest.approx(np.mean(pairs), abs=1e-9)
    assert measures.oscr(score, unknown, np.ones_like(correct)) == pytest.approx(
        measures.auroc(score, unknown)
    )


@random_sets
def test_openauc_is_the_auroc_with_wrong_known_images_above_everything(seed, ties):
    score, unknown, correct = drawn(seed, ties)
    raised = np.where(~unknown & ~correct, score.max() + 1, score)
    found = measures.openauc(score, unknown, correct)
    assert found == pytest.approx(metrics.roc_auc_score(unknown, raised), abs=1e-12)
    assert found == pytest.approx(measures.oscr(score, unknown, correct), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_openauc_and_oscr_agree_on_infinite_scores(seed):
    rng = np.random.default_rng(seed)
    values = np.array([-np.inf, -1.0, 0.0, np.finfo(np.float64).max / 2, np.inf])
    place = rng.integers(0, 5, 60)
    unknown, correct = rng.random(60) < 0.5, rng.random(60) < 0.7
    # the places rank as the scores do, and scikit-learn takes them
    raised = np.where(~unknown & ~correct, 9, place)
    expected = metrics.roc_auc_score(unknown, raised)
    assert measures.openauc(values[place], unknown, correct) == pytest.approx(expected, abs=1e-12)
    assert measures.oscr(values[place], unknown, correct) == pytest.approx(expected, abs=1e-12)


def test_a_wrong_known_image_loses_to_an_infinite_unknown_score():
    score, unknown = np.array([0.0, 0.0, np.inf]), np.array([False, False, True])
    assert measures.openauc(score, unknown, np.array([True, False, False])) == 0.5
    assert measures.oscr(score, unknown, np.array([True, False, False])) == 0.5


def test_openauc_is_zero_where_every_known_image_is_wrong():
    assert measures.openauc(SCORE, UNKNOWN, np.zeros(6, bool)) == 0
    assert measures.oscr(SCORE, UNKNOWN, np.zeros(6, bool)) == 0


@random_sets
def test_fpr95_and_detection_error_equal_a_search_over_all_thresholds(seed, ties):
    score, unknown, _ = drawn(seed, ties)
    known_scores, unknown_scores = score[~unknown], score[unknown]
    accepting = [t for t in np.unique(score) if 100 * np.sum(known_scores <= t) >= 95 * len(known_scores)]
    assert measures.fpr95_known(score, unknown) == np.mean(unknown_scores <= min(accepting))
    rejecting = [t for t in np.unique(score) if 100 * np.sum(unknown_scores >= t) >= 95 * len(unknown_scores)]
    assert measures.fpr95_unknown(score, unknown) == np.mean(known_scores >= max(rejecting))
    errors = [
        (np.mean(known_scores > t) + np.mean(unknown_scores <= t)) / 2 for t in [-np.inf, *np.unique(score)]
    ]
    assert measures.detection_error(score, unknown) == pytest.approx(min(errors), abs=1e-12)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (20, 19), (21, 20), (60, 57), (100, 95), (0, 0)])
def test_share95_is_free_of_rounding(count, expected):
    assert measures.share95(count) == expected


@pytest.mark.parametrize("seed", range(5))
def test_aurc_is_the_mean_over_all_orders_of_the_ties(seed):
    rng = np.random.default_rng(seed)
    score, correct = rng.integers(0, 3, 7).astype(float), rng.random(7) < 0.6

    def one_order(order):
        errors = ~correct[list(order)]
        return np.mean(np.cumsum(errors) / np.arange(1, 8))

    orders = [o for o in itertools.permutations(range(7)) if (np.diff(score[list(o)]) >= 0).all()]
    assert measures.aurc(score, correct) == pytest.approx(np.mean([one_order(o) for o in orders]), abs=1e-9)


def test_ece_hand_worked():
    # bins (0.4, 0.6] with accuracy 1/2 and mean confidence 0.55, and (0.8, 1] with 1 and 0.9
    confidence = np.array([0.5, 0.6, 1.0, 0.8 + 1e-12])
    correct = np.array([True, False, True, True])
    assert measures.ece(confidence, correct, bins=5) == pytest.approx((2 * 0.05 + 2 * 0.1) / 4)
    assert measures.ece(np.array([0.0, 1.0]), np.array([False, True])) == 0


@pytest.mark.parametrize("seed", range(4))
def test_ece_equals_a_loop_over_its_bins(seed):
    rng = np.random.default_rng(seed)
    confidence, correct = rng.random(200), rng.random(200) < 0.7
    expected = 0.0
    for low in np.arange(15) / 15:
        mask = (confidence > low) & (confidence <= low + 1 / 15)
        if mask.any():
            expected += mask.mean() * abs(correct[mask].mean() - confidence[mask].mean())
    assert measures.ece(confidence, correct) == pytest.approx(expected, abs=1e-9)


@random_sets
def test_decisions_equal_scikit_learn(seed, ties):
    score, unknown, correct = drawn(seed, ties)
    rng = np.random.default_rng(seed)
    label = np.where(unknown, 3, rng.integers(0, 3, len(score)))
    prediction = np.where(score > np.median(score) - 1, 3, np.where(correct, label % 3, (label + 1) % 3))
    rejected = prediction == 3
    found = measures.decisions(label, prediction, 3)
    expected = {
        "known_accuracy": metrics.accuracy_score(label[~unknown], prediction[~unknown]),
        "unknown_accuracy": metrics.accuracy_score(label[unknown], prediction[unknown]),
        "total_accuracy": metrics.accuracy_score(label, prediction),
        "binary_accuracy": metrics.accuracy_score(unknown, rejected),
        "balanced_accuracy": metrics.balanced_accuracy_score(unknown, rejected),
        "precision": metrics.precision_score(unknown, rejected),
        "recall": metrics.recall_score(unknown, rejected),
        "f1": metrics.f1_score(unknown, rejected),
        "macro_f1": metrics.f1_score(label, prediction, average="macro", zero_division=0),
        "binary_auroc": metrics.roc_auc_score(unknown, rejected),
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_rejected_known_image_is_wrong():
    found = measures.decisions(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 0]), num_classes=2)
    assert found["known_accuracy"] == 0.5
    assert found["unknown_accuracy"] == 0.5
    assert found["precision"] == 0.5


def test_nothing_rejected_leaves_precision_undefined():
    found = measures.decisions(np.array([0, 1, 2]), np.array([0, 1, 1]), num_classes=2)
    assert found["precision"] is None
    assert found["recall"] == found["f1"] == found["unknown_accuracy"] == 0


@pytest.mark.parametrize(
    "unknown", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0, bool)], ids=["known", "unknown", "empty"]
)
def test_one_class_and_empty_sets_leave_measures_undefined(unknown):
    score, correct = np.arange(len(unknown), dtype=float), np.ones(len(unknown), bool)
    assert [getattr(measures, name)(score, unknown) for name in RANKING] == [None] * len(RANKING)
    assert measures.oscr(score, unknown, correct) is None
    assert measures.openauc(score, unknown, correct) is None
    label = np.where(unknown, 2, 0)
    found = measures.decisions(label, label, num_classes=2)
    per_class = {
        "known_accuracy": 1.0 if (~unknown).any() else None,
        "unknown_accuracy": 1.0 if unknown.any() else None,
    }
    assert found == dict.fromkeys(found) | per_class


def test_an_empty_closed_set_leaves_its_measures_undefined():
    assert measures.aurc(np.zeros(0), np.zeros(0, bool)) is None
    assert measures.ece(np.zeros(0), np.zeros(0, bool)) is None


def test_any_range_and_infinite_scores_rank_alike():
    stretched = np.array([-np.inf, -1e300, 0, 0, 0, np.inf])
    for name in RANKING:
        assert getattr(measures, name)(stretched, UNKNOWN) == getattr(measures, name)(SCORE, UNKNOWN)


def test_acceptance_counts_at_any_threshold():
    counts = acceptance(SCORE, UNKNOWN, CORRECT)
    assert counts.threshold.tolist() == [1, 2, 3, 4]
    assert counts.known.tolist() == [0, 1, 2, 4, 4]
    assert counts.correct.tolist() == [0, 1, 1, 3, 3]
    assert counts.unknown.tolist() == [0, 0, 0, 1, 2]
    at = counts.at([0.5, 2.0, 2.9, np.inf])
    assert at.known.tolist() == [0, 2, 2, 4]
    assert at.unknown.tolist() == [0, 0, 0, 2]
