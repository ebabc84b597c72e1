"""The sections of results.json, and the bootstrap behind its intervals."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from osr_lightning.errors import UserError
from osr_lightning.evaluation import bootstrap
from osr_lightning.evaluation.measures import MEASURES
from osr_lightning.evaluation.measures.ranking import auroc, fpr95_known, oscr
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.effects import effects
from osr_lightning.evaluation.results import achieved, closed_set, evaluate, open_set
from osr_lightning.scoring.calibration import misgivings
from osr_lightning.scoring.quantile import known_quantile

OPEN_SET = {
    "count_known", "count_unknown", "known_accuracy", "unknown_accuracy", "total_accuracy", "binary_accuracy",
    "balanced_accuracy", "precision", "recall", "f1", "auroc", "oscr", "openauc",
}  # fmt: skip
UNKNOWN_SET = OPEN_SET | {"aupr_known", "aupr_unknown", "fpr95_known", "fpr95_unknown"}


def make_table(known=60, unknown=(20, 10), seed=0, accuracy=0.8, groups=None) -> PredictionTable:
    """Three classes; unknown sets ``a``, ``b``, … of the given sizes; scores with many ties."""
    rng = np.random.default_rng(seed)
    sizes = [known, *unknown]
    source = np.repeat(np.arange(len(sizes)), sizes)
    size = len(source)
    true = rng.integers(0, 3, size)
    label = np.where(source == 0, true, 3)
    predicted = np.where(rng.random(size) < accuracy, true, (true + 1) % 3)
    score = np.round(rng.normal(size=size) + (source > 0), 1)
    return PredictionTable(
        class_names=("x", "y", "z"),
        source_names=("digits", *"abcdef"[: len(unknown)]),
        groups=groups or {},
        score_name="energy",
        threshold=1.0,
        source=source,
        label=label,
        predicted_class=predicted,
        confidence=rng.uniform(0.4, 1, size),
        nll=np.where(source == 0, rng.exponential(size=size), np.nan),
        scores={"energy": score, "msp": rng.random(size)},
        logits=rng.normal(size=(size, 3)).astype(np.float32),
    )


def test_the_sections_have_the_keys_of_the_schema():
    results = evaluate(make_table(groups={"far": ("a",), "both": ("a", "b")}), resamples=20)
    assert set(results) == {"closed_set", "open_set", "unknown", "groups", "scores", "intervals"}
    assert set(results["closed_set"]) == {"count", "accuracy", "nll", "ece", "aurc", "per_class"}
    extra = {"macro_f1", "detection_error", "binary_auroc", "aupr_known_50", "aupr_unknown_50"}
    assert set(results["open_set"]) >= UNKNOWN_SET | extra
    assert list(results["unknown"]) == ["a", "b"]
    for numbers in (results["open_set"], *results["unknown"].values()):
        assert list(numbers) == ["count_known", "count_unknown", *MEASURES]
    assert set(results["intervals"]) == {
        "known_accuracy", "unknown_accuracy", "total_accuracy", "auroc", "oscr", "fpr95_known",
    }  # fmt: skip
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_no_groups_no_section():
    assert "groups" not in evaluate(make_table(), resamples=5)


def test_the_numbers_are_those_of_the_rows():
    table = make_table()
    closed, pooled = closed_set(table), open_set(table, np.ones(90, bool))
    known = table.source == 0
    right = table.predicted_class == table.label
    assert closed["count"] == 60
    assert closed["accuracy"] == right[known].mean()
    assert closed["nll"] == pytest.approx(table.nll[known].mean())
    assert (pooled["count_known"], pooled["count_unknown"]) == (60, 30)
    assert pooled["known_accuracy"] == np.mean((right & (table.score <= 1))[known])
    assert pooled["unknown_accuracy"] == np.mean(table.score[~known] > 1)
    assert pooled["total_accuracy"] == np.mean(table.prediction == table.label)
    assert pooled["auroc"] == auroc(Outcomes.of(table))
    assert pooled["oscr"] == oscr(Outcomes.of(table))
    assert pooled["openauc"] == pytest.approx(pooled["oscr"], abs=1e-12)
    # a score of two values has one threshold: its AUROC is the balanced accuracy
    assert pooled["binary_auroc"] == pytest.approx(roc_auc_score(~known, table.rejected))


def test_per_class_numbers_are_those_of_its_rows():
    table = dataclasses.replace(
        make_table(5, (2,)),
        class_names=("cat", "dog", "cow"),
        label=np.array([0, 0, 0, 1, 1, 3, 3]),
        predicted_class=np.array([0, 1, 0, 1, 0, 1, 0]),
        scores={"energy": np.array([0.0, 2.0, 2.0, 1.0, 3.0, 9.0, 0.0])},
    )
    assert closed_set(table)["per_class"] == {
        # rejected above 1: the second and third cat, the second dog; the unknown images are nobody's
        "cat": {"count": 3, "accuracy": 2 / 3, "rejected": 2 / 3},
        "dog": {"count": 2, "accuracy": 1 / 2, "rejected": 1 / 2},
        "cow": {"count": 0, "accuracy": None, "rejected": None},
    }


def test_classes_weighed_by_their_counts_give_the_accuracy():
    closed = closed_set(make_table())
    per_class = closed["per_class"].values()
    assert sum(numbers["count"] for numbers in per_class) == closed["count"]
    hits = sum(numbers["count"] * numbers["accuracy"] for numbers in per_class)
    assert hits / closed["count"] == pytest.approx(closed["accuracy"])


def test_the_shares_rejected_are_those_of_each_set():
    table = make_table(10, (4, 2, 0))
    score = np.array([0.0] * 6 + [2.0] * 4 + [2.0, 2.0, 2.0, 0.0] + [0.0, 0.0])
    table = dataclasses.replace(table, scores={"energy": score})
    shares = [effect.rejected for effect in effects(table)]
    assert shares == [0.4, 0.75, 0.0, None]
    (warning,) = misgivings(shares[0], dict(zip("abc", shares[1:], strict=True)), "test images")
    assert warning.startswith("0.0% of the test images of b are rejected")
    known, *_ = effects(dataclasses.replace(table, threshold=-1.0))
    assert misgivings(known.rejected, {}, "test images")[0].startswith(
        "100.0% of the known test images are rejected"
    )


def test_an_unknown_set_may_be_named_known():
    table = dataclasses.replace(make_table(10, (4,)), source_names=("digits", "known"), threshold=-99.0)
    table.scores["energy"][table.source == 1] = -100.0
    known, unknown = effects(table)
    warnings = misgivings(known.rejected, {unknown.name: unknown.rejected}, "test images")
    assert any("100.0% of the known test images" in warning for warning in warnings)


def test_an_unknown_set_is_measured_with_all_known_images_and_no_other_set():
    table = make_table()
    results = evaluate(table, resamples=5)
    mask = table.source != 1
    assert results["unknown"]["b"] == open_set(table, mask)
    assert results["unknown"]["b"]["count_unknown"] == 10
    score, by_msp = results["scores"]["msp"], dataclasses.replace(table, score_name="msp")
    assert score["unknown"]["b"]["auroc"] == auroc(Outcomes.of(by_msp, mask))
    assert score["pooled"]["fpr95_known"] == fpr95_known(Outcomes.of(by_msp))
    assert results["scores"]["energy"]["pooled"]["auroc"] == results["open_set"]["auroc"]


def test_a_group_is_the_mean_of_its_sets():
    table = make_table(unknown=(20, 10, 0), groups={"both": ("a", "b"), "odd": ("a", "c"), "none": ("c",)})
    results = evaluate(table, resamples=5)
    sets, groups = results["unknown"], results["groups"]
    assert groups["both"]["sets"] == ["a", "b"]
    assert groups["both"]["auroc"] == pytest.approx((sets["a"]["auroc"] + sets["b"]["auroc"]) / 2)
    assert groups["odd"]["auroc"] == sets["a"]["auroc"]  # an empty set has no say
    assert groups["none"]["auroc"] is None
    assert "count_unknown" not in groups["both"]


@pytest.mark.parametrize(("known", "unknown"), [(30, ()), (30, (0,)), (0, (30,)), (0, ()), (0, (0, 0))])
def test_missing_classes_give_null(known, unknown):
    results = evaluate(make_table(known, unknown), resamples=5)
    json.dumps(results, allow_nan=False)
    pooled = results["open_set"]
    one_class = (
        "total_accuracy",
        "auroc",
        "oscr",
        "openauc",
        "f1",
        "fpr95_known",
        "aupr_unknown",
        "binary_auroc",
    )
    assert [pooled[name] for name in one_class] == [None] * len(one_class)
    assert (pooled["known_accuracy"] is None) == (known == 0)
    assert (pooled["unknown_accuracy"] is None) == (sum(unknown) == 0)
    assert (results["closed_set"]["accuracy"] is None) == (known == 0)
    assert (results["intervals"]["known_accuracy"] is None) == (known == 0)
    assert results["intervals"]["auroc"] is None


def test_nan_scores_are_refused_by_name():
    table = make_table()
    table.scores["msp"][3] = np.nan
    with pytest.raises(UserError, match="'msp' is NaN for 1 of 90"):
        evaluate(table)


def test_an_infinite_likelihood_is_null():
    table = make_table()
    table.nll[0] = np.inf
    assert closed_set(table)["nll"] is None


def test_resampled_measures_equal_those_of_the_redrawn_images(monkeypatch):
    table = make_table()
    monkeypatch.setattr(bootstrap, "CHUNK", 1)  # one resample at a time, so that the draws can be followed
    samples = bootstrap.resample(table, resamples=6, seed=3)
    rng = np.random.default_rng(3)
    for index in range(6):
        rows = np.concatenate([rng.integers(60, size=60), 60 + rng.integers(30, size=30)])
        arrays = ("source", "label", "predicted_class", "confidence", "nll", "logits")
        redrawn = dataclasses.replace(
            table,
            **{name: getattr(table, name)[rows] for name in arrays},
            scores={name: score[rows] for name, score in table.scores.items()},
        )
        expected = open_set(redrawn, np.ones(90, bool))
        for name in bootstrap.HEADLINE:
            assert samples[name][index] == pytest.approx(expected[name], abs=1e-9), name


def test_the_bootstrap_is_seeded():
    table = make_table()
    first, again, other = (evaluate(table, resamples=50, seed=seed)["intervals"] for seed in (1, 1, 2))
    assert first == again != other


def test_intervals_hold_the_value():
    results = evaluate(make_table(), resamples=300)
    for name, (low, high) in results["intervals"].items():
        assert low <= results["open_set"][name] <= high


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = []
    for seed in range(150):
        table = dataclasses.replace(make_table(200, (), seed=seed, accuracy=0.8), threshold=np.inf)
        low, high = bootstrap.interval(bootstrap.resample(table, 200, seed), "known_accuracy")
        covered.append(low <= 0.8 <= high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_equal_images_get_equal_draws():
    table = make_table()
    better = dataclasses.replace(table, predicted_class=np.where(table.known, table.label, 0))
    one, two = (bootstrap.resample(t, 100) for t in (table, better))
    assert (two["known_accuracy"] >= one["known_accuracy"]).all()
    np.testing.assert_array_equal(one["auroc"], two["auroc"])


def test_start_up_loads_neither_scikit_learn_nor_matplotlib_nor_jinja():
    modules = "results, compare, prediction_table, bootstrap, embedding"
    check = f"import sys; from osr_lightning.evaluation import {modules}; "
    check += "from osr_lightning.evaluation.report import write; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"sklearn", "matplotlib", "jinja2", "rich"} & set(loaded)


def test_achieved_share_against_simulation():
    """The bound holds for about 95 of 100 calibration and test sets, the share is that of the table."""
    rng = np.random.default_rng(0)
    within = []
    for _ in range(400):
        scores = rng.normal(size=150)
        table = PredictionTable(
            class_names=("a", "b"),
            source_names=("known",),
            groups={},
            score_name="s",
            threshold=known_quantile(scores[:50], 0.1),
            source=np.zeros(100, np.int64),
            label=np.zeros(100, np.int64),
            predicted_class=np.zeros(100, np.int64),
            confidence=np.ones(100),
            nll=np.zeros(100),
            scores={"s": scores[50:]},
            logits=np.zeros((100, 2), np.float32),
        )
        found = achieved(table, 0.1, 50)
        assert found["known_rejected"] == np.mean(scores[50:] > table.threshold)
        assert found["low"] <= found["known_rejected"] <= found["high"]
        within.append(found["known_rejected"] <= found["bound"])
    assert 0.93 <= np.mean(within) <= 0.99
    assert achieved(table, 0.01, 50) is None  # 50 images are too few for 1%
