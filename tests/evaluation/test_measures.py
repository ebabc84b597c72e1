"""Every measure against hand-worked values, scikit-learn and brute force, with ties and without."""

import itertools

import numpy as np
import pytest
from sklearn import metrics

from osr_lightning.evaluation.acceptance import acceptance
from osr_lightning.evaluation.measures import MEASURES, ranking
from osr_lightning.evaluation.outcomes import Outcomes

# four known images (one of them misclassified) and two unknown, with a tie across the classes
SCORE = np.array([1.0, 2.0, 3.0, 3.0, 3.0, 4.0])
UNKNOWN = np.array([False, False, False, False, True, True])
CORRECT = np.array([True, False, True, True, False, False])
RANKING = [name for name, measure in MEASURES.items() if measure.take.__module__ == ranking.__name__]


def outcomes(score, unknown, correct=None) -> Outcomes:
    """Three classes, all known images of the first; nothing is rejected."""
    right = np.ones(len(score), bool) if correct is None else correct
    return Outcomes(np.where(unknown, 3, 0), np.where(right, 0, 1), score, np.zeros(len(score), bool), 3)


def decided(label, prediction, num_classes) -> dict[str, float | None]:
    """Every measure, of which those of the decisions count."""
    rejected = prediction == num_classes
    given = Outcomes(label, np.where(rejected, 0, prediction), np.zeros(len(label)), rejected, num_classes)
    return {name: measure.take(given) for name, measure in MEASURES.items()}


def ranked(name: str, *arrays: np.ndarray) -> float | None:
    """One measure of score, unknown and, where it counts, correct."""
    return MEASURES[name].take(outcomes(*arrays))


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
    assert ranked("auroc", SCORE, UNKNOWN) == pytest.approx(7 / 8)
    assert ranked("oscr", SCORE, UNKNOWN, CORRECT) == pytest.approx(5 / 8)
    # of 8 pairs the rightly classified known at 1, 3 and 3 win 2 + 1.5 + 1.5
    assert ranked("openauc", SCORE, UNKNOWN, CORRECT) == pytest.approx(5 / 8)
    # all four known are needed for 95%: threshold 3, which one unknown does not exceed
    assert ranked("fpr95_known", SCORE, UNKNOWN) == 1 / 2
    # both unknown are needed: everything from 3 up is rejected, two known with them
    assert ranked("fpr95_unknown", SCORE, UNKNOWN) == 1 / 2
    assert ranked("detection_error", SCORE, UNKNOWN) == pytest.approx(1 / 4)
    # precision 1 at 4 (half the recall), then 2 of 4 at 3
    assert ranked("aupr_unknown", SCORE, UNKNOWN) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)


@random_sets
def test_ranking_measures_equal_scikit_learn(seed, ties):
    score, unknown, _ = drawn(seed, ties)
    assert ranked("auroc", score, unknown) == pytest.approx(metrics.roc_auc_score(unknown, score), abs=1e-9)
    for name, positive, ordered in (("unknown", unknown, score), ("known", ~unknown, -score)):
        expected = metrics.average_precision_score(positive, ordered)
        assert ranked(f"aupr_{name}", score, unknown) == pytest.approx(expected, abs=1e-9)
        share = np.where(unknown, 0.5 / unknown.mean(), 0.5 / (~unknown).mean())
        expected = metrics.average_precision_score(positive, ordered, sample_weight=share)
        assert ranked(f"aupr_{name}_50", score, unknown) == pytest.approx(expected, abs=1e-9)


def test_aupr_at_half_equals_that_of_a_set_filled_up_to_half():
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 9, 30), rng.integers(3, 12, 10)
    score, label = np.concatenate([known, unknown]).astype(float), np.repeat([False, True], [30, 10])
    filled = np.concatenate([known, *[unknown] * 3]).astype(float)
    expected = ranked("aupr_unknown", filled, np.repeat([False, True], 30))
    assert ranked("aupr_unknown_50", score, label) == pytest.approx(expected, abs=1e-12)


@random_sets
def test_oscr_is_the_share_of_pairs_that_a_rightly_classified_known_image_wins(seed, ties):
    score, unknown, correct = drawn(seed, ties)
    pairs = [
        right * ((k < u) + (k == u) / 2)
        for k, right in zip(score[~unknown], correct[~unknown], strict=True)
        for u in score[unknown]
    ]
    assert ranked("oscr", score, unknown, correct) == pytest.approx(np.mean(pairs), abs=1e-9)
    assert ranked("oscr", score, unknown, np.ones_like(correct)) == pytest.approx(
        ranked("auroc", score, unknown)
    )


@random_sets
def test_openauc_is_the_auroc_with_wrong_known_images_above_everything(seed, ties):
    score, unknown, correct = drawn(seed, ties)
    raised = np.where(~unknown & ~correct, score.max() + 1, score)
    found = ranked("openauc", score, unknown, correct)
    assert found == pytest.approx(metrics.roc_auc_score(unknown, raised), abs=1e-12)
    assert found == pytest.approx(ranked("oscr", score, unknown, correct), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_openauc_and_oscr_agree_on_infinite_scores(seed):
    rng = np.random.default_rng(seed)
    values = np.array([-np.inf, -1.0, 0.0, np.finfo(np.float64).max / 2, np.inf])
    place = rng.integers(0, 5, 60)
    unknown, correct = rng.random(60) < 0.5, rng.random(60) < 0.7
    # the places rank as the scores do, and scikit-learn takes them
    raised = np.where(~unknown & ~correct, 9, place)
    expected = metrics.roc_auc_score(unknown, raised)
    assert ranked("openauc", values[place], unknown, correct) == pytest.approx(expected, abs=1e-12)
    assert ranked("oscr", values[place], unknown, correct) == pytest.approx(expected, abs=1e-12)


def test_a_wrong_known_image_loses_to_an_infinite_unknown_score():
    score, unknown = np.array([0.0, 0.0, np.inf]), np.array([False, False, True])
    assert ranked("openauc", score, unknown, np.array([True, False, False])) == 0.5
    assert ranked("oscr", score, unknown, np.array([True, False, False])) == 0.5


def test_openauc_is_zero_where_every_known_image_is_wrong():
    assert ranked("openauc", SCORE, UNKNOWN, np.zeros(6, bool)) == 0
    assert ranked("oscr", SCORE, UNKNOWN, np.zeros(6, bool)) == 0


@random_sets
def test_fpr95_and_detection_error_equal_a_search_over_all_thresholds(seed, ties):
    score, unknown, _ = drawn(seed, ties)
    known_scores, unknown_scores = score[~unknown], score[unknown]
    accepting = [t for t in np.unique(score) if 100 * np.sum(known_scores <= t) >= 95 * len(known_scores)]
    assert ranked("fpr95_known", score, unknown) == np.mean(unknown_scores <= min(accepting))
    rejecting = [t for t in np.unique(score) if 100 * np.sum(unknown_scores >= t) >= 95 * len(unknown_scores)]
    assert ranked("fpr95_unknown", score, unknown) == np.mean(known_scores >= max(rejecting))
    errors = [
        (np.mean(known_scores > t) + np.mean(unknown_scores <= t)) / 2 for t in [-np.inf, *np.unique(score)]
    ]
    assert ranked("detection_error", score, unknown) == pytest.approx(min(errors), abs=1e-12)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (20, 19), (21, 20), (60, 57), (100, 95), (0, 0)])
def test_share95_is_free_of_rounding(count, expected):
    assert ranking.share95(count) == expected


@random_sets
def test_decisions_equal_scikit_learn(seed, ties):
    score, unknown, correct = drawn(seed, ties)
    rng = np.random.default_rng(seed)
    label = np.where(unknown, 3, rng.integers(0, 3, len(score)))
    prediction = np.where(score > np.median(score) - 1, 3, np.where(correct, label % 3, (label + 1) % 3))
    rejected = prediction == 3
    found = decided(label, prediction, 3)
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
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_a_rejected_known_image_is_wrong():
    found = decided(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 0]), num_classes=2)
    assert found["known_accuracy"] == 0.5
    assert found["unknown_accuracy"] == 0.5
    assert found["precision"] == 0.5


def test_nothing_rejected_leaves_precision_undefined():
    found = decided(np.array([0, 1, 2]), np.array([0, 1, 1]), num_classes=2)
    assert found["precision"] is None
    assert found["recall"] == found["f1"] == found["unknown_accuracy"] == 0


@pytest.mark.parametrize(
    "unknown", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0, bool)], ids=["known", "unknown", "empty"]
)
def test_one_class_and_empty_sets_leave_measures_undefined(unknown):
    label = np.where(unknown, 2, 0)
    found = decided(label, label, num_classes=2)
    assert found["known_accuracy"] == (1.0 if (~unknown).any() else None)
    assert found["unknown_accuracy"] == (1.0 if unknown.any() else None)
    assert {found[name] for name, measure in MEASURES.items() if measure.needs == "both"} == {None}


def test_any_range_and_infinite_scores_rank_alike():
    stretched = np.array([-np.inf, -1e300, 0, 0, 0, np.inf])
    for name in RANKING:
        assert ranked(name, stretched, UNKNOWN, CORRECT) == ranked(name, SCORE, UNKNOWN, CORRECT)


def test_acceptance_counts_at_any_threshold():
    counts = acceptance(SCORE, UNKNOWN, CORRECT)
    assert counts.threshold.tolist() == [1, 2, 3, 4]
    assert counts.known.tolist() == [0, 1, 2, 4, 4]
    assert counts.correct.tolist() == [0, 1, 1, 3, 3]
    assert counts.unknown.tolist() == [0, 0, 0, 1, 2]
    at = counts.at([0.5, 2.0, 2.9, np.inf])
    assert at.known.tolist() == [0, 2, 2, 4]
    assert at.unknown.tolist() == [0, 0, 0, 2]
