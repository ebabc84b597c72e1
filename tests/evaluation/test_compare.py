"""Runs side by side, and the paired intervals of their differences."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.evaluation import compare as comparing
from osr_lightning.evaluation.compare import compare
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.results import evaluate
from osr_lightning.evaluation.run_groups import MeasureKey, titles


def make_table(seed=0, accuracy=0.8, images=0) -> PredictionTable:
    """Runs of equal ``images`` were tested on the same images, with answers drawn by ``seed``."""
    labels, rng = np.random.default_rng(images), np.random.default_rng(seed)
    source = np.repeat([0, 1], [200, 100])
    true = labels.integers(0, 3, 300)
    return PredictionTable(
        class_names=("x", "y", "z"),
        source_names=("digits", "noise"),
        groups={},
        score_name="energy",
        threshold=1.0,
        source=source,
        label=np.where(source == 0, true, 3),
        predicted_class=np.where(rng.random(300) < accuracy, true, (true + 1) % 3),
        confidence=rng.uniform(0.4, 1, 300),
        nll=np.where(source == 0, 1.0, np.nan),
        scores={"energy": rng.normal(size=300) + 2 * (source > 0)},
        logits=rng.normal(size=(300, 3)).astype(np.float32),
    )


@pytest.fixture
def run(tmp_path):
    """Writes a run folder of a table and returns its path."""

    def write(name, table, optimistic=False):
        table.save(tmp_path / name)
        results = {
            "schema_version": 2,
            "model": {"class": "Baseline<b>"},
            "classes": list(table.class_names),
            "score": {"name": "energy"},
            "threshold": {"value": table.threshold, "optimistic": optimistic},
            "timing": {"fit_s": None, "test_s": 2.5, "images_per_s": 120.0},
            **evaluate(table, resamples=5),
        }
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        return tmp_path / name

    return write


def test_one_row_per_run(run, tmp_path):
    table = make_table()
    runs = [run("one", table), run("two", make_table(1), optimistic=True)]
    rows = compare(runs, tmp_path / "out", resamples=20).rows
    assert [row["run"] for row in rows] == [str(path) for path in runs]
    expected = evaluate(table, resamples=5)["open_set"]
    for name in ("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc", "fpr95_known"):
        assert rows[0][name] == expected[name]
    assert [row["optimistic"] for row in rows] == [False, True]
    assert (rows[0]["model"], rows[0]["threshold"], rows[0]["fit_s"]) == ("Baseline<b>", 1.0, None)


def test_the_csv_and_the_page(run, tmp_path):
    compare([run("one", make_table()), run("two", make_table(1), optimistic=True)], tmp_path / "out", 20)
    with open(tmp_path / "out" / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["run", *comparing.COLUMNS, "settings"]
    assert rows[1]["optimistic"] == "True"
    assert rows[0]["fit_s"] == ""
    assert float(rows[0]["known_accuracy"]) <= 1
    html = (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert html.count('<span class="badge">optimistic</span>') == 1
    assert "Baseline&lt;b&gt;" in html
    assert f"{float(rows[1]['auroc']):.4f}" in html
    assert "http:" not in html
    assert "https:" not in html


def test_differences_are_paired(run, tmp_path):
    table = make_table()
    worse = dataclasses.replace(table, predicted_class=table.predicted_class.copy())
    flipped = np.flatnonzero((table.predicted_class == table.label) & ~table.rejected)[:10]
    worse.predicted_class[flipped] = (worse.predicted_class[flipped] + 1) % 3
    same, other = compare(
        [run("a", table), run("b", table), run("c", worse)], tmp_path / "out", 400
    ).differences
    assert same["known_accuracy"] == same["auroc"] == (0, 0, 0)
    middle, low, high = other["known_accuracy"]
    assert middle == pytest.approx(-10 / 200)
    assert low < middle < high < 0
    # pairing cancels what the runs share: 10 of 200 images differ, whatever the rest do
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.05 * 0.95 / 200), rel=0.25)
    assert other["auroc"] == (0, 0, 0)
    assert other["total_accuracy"][0] == pytest.approx(-10 / 300)


def test_other_images_are_not_paired(run, tmp_path):
    first = run("a", make_table())
    renamed = dataclasses.replace(make_table(), source_names=("digits", "clothes"))
    differences = compare(
        [first, run("b", make_table(images=1)), run("c", renamed)], tmp_path, 20
    ).differences
    assert differences == [{"run": str(tmp_path / n), "same_images": False} for n in ("b", "c")]
    assert comparing.difference(differences[0], "auroc") == "other images"


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (("x", "y", "w"), "it has 'w' and lacks 'z'"),
        (("x", "y", "Z"), "it has 'Z' and lacks 'z'"),
        (("a\nb", "y", "z"), r"it has 'a\nb' and lacks 'x'"),
    ],
)
def test_runs_of_other_classes_are_not_compared_and_the_difference_is_named(run, tmp_path, names, difference):
    first = run("one", make_table())
    second = run("two", dataclasses.replace(make_table(1), class_names=names))
    with pytest.raises(UserError) as caught:
        compare([first, second], tmp_path / "out", 20)
    assert difference in str(caught.value)
    assert str(second) in str(caught.value)  # which run, of many
    assert not (tmp_path / "out").exists()


def test_runs_with_fewer_classes_are_not_compared(run, tmp_path):
    first = run("one", make_table())
    logits = np.zeros((300, 4), np.float32)
    second = run("two", dataclasses.replace(make_table(1), class_names=("x", "y", "z", "w"), logits=logits))
    with pytest.raises(
        UserError,
        match=r"two does not have the classes of .*one: it has 'w'; compare runs of the same classes",
    ):
        compare([first, second], tmp_path / "out", 20)
    with pytest.raises(UserError, match=r"one does not have the classes of .*two: it lacks 'w';"):
        compare([second, first], tmp_path / "out", 20)


def test_the_third_run_is_checked_as_well(run, tmp_path):
    table = make_table()
    odd = dataclasses.replace(table, class_names=("x", "y", "w"))
    with pytest.raises(UserError, match=r"c does not have .* 'w'"):
        compare([run("a", table), run("b", table), run("c", odd)], tmp_path / "out", 20)


def test_the_order_of_the_classes_is_no_difference(run, tmp_path):
    table = make_table()
    # the same images and answers, the classes numbered the other way round
    turned = dataclasses.replace(
        table,
        class_names=table.class_names[::-1],
        label=np.where(table.label == 3, 3, 2 - table.label),
        predicted_class=2 - table.predicted_class,
    )
    rows = compare([run("a", table), run("b", turned)], tmp_path / "out", 20).rows
    assert rows[0]["known_accuracy"] == rows[1]["known_accuracy"]


def test_runs_without_unknown_images(run, tmp_path):
    table = make_table()
    cut = {
        name: getattr(table, name)[:200]
        for name in ("source", "label", "predicted_class", "confidence", "nll")
    }
    known = dataclasses.replace(table, **cut, logits=table.logits[:200], scores={"energy": table.score[:200]})
    comparison = compare([run("a", known), run("b", known)], tmp_path / "out", 20)
    assert comparison.rows[0]["auroc"] is None
    assert comparison.differences[0]["auroc"] is None
    assert comparison.differences[0]["known_accuracy"] == (0, 0, 0)
    comparing.print_comparison(comparison)


@pytest.mark.parametrize("missing", ["results.json", "predictions.csv", "evaluation.npz"])
def test_a_folder_that_is_no_run_folder_is_named(run, tmp_path, missing):
    good, bad = run("good", make_table()), run("bad", make_table())
    (bad / missing).unlink()
    with pytest.raises(UserError, match=rf"bad.*{missing}"):
        compare([good, bad], tmp_path / "out", 20)
    with pytest.raises(UserError, match="nowhere is no run folder"):
        compare([good, tmp_path / "nowhere"], tmp_path / "out", 20)
    with pytest.raises(UserError, match="nothing to compare"):
        compare([], tmp_path / "out")


def test_the_command_prints_both_tables(run, tmp_path, capsys):
    paths = [run("one", make_table(), optimistic=True), run("two", make_table(1))]
    main(["compare", *map(str, paths), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert f"1  {paths[0]}: Baseline<b>, energy > 1, optimistic: test images chose it" in printed
    assert "difference from run 1" in printed
    assert printed.strip().endswith("comparison.html")
    assert max(len(line) for line in printed.splitlines() if line.startswith(("│", "┃"))) <= 80


@pytest.mark.parametrize("value", ["0.5", [0.5], True, float("nan"), 10**400, None])
def test_what_is_no_number_is_left_out(run, tmp_path, value):
    runs = [run("one", make_table()), run("two", make_table(1))]
    for folder in runs:
        file = folder / "results.json"
        results = json.loads(file.read_text())
        results["open_set"]["auroc"] = results["threshold"]["value"] = results["timing"]["test_s"] = value
        del results["open_set"]["known_accuracy"]
        file.write_text(json.dumps(results))
    found = compare(runs, tmp_path / "out", 20)
    for row in found.rows:
        assert row["auroc"] is row["threshold"] is row["test_s"] is row["known_accuracy"] is None
    assert found.differences[0]["auroc"] is found.differences[0]["known_accuracy"] is None
    assert found.differences[0]["total_accuracy"] is not None
    comparing.print_comparison(found)


def test_results_of_another_kind_are_named(run, tmp_path):
    runs = [run("one", make_table()), run("two", make_table(1))]
    results = json.loads((runs[1] / "results.json").read_text())
    for changes in ({"open_set": [1]}, {"classes": [1, "x", None]}, {"timing": "fast"}):
        (runs[1] / "results.json").write_text(json.dumps(results | changes))
        with pytest.raises(UserError, match=r"two/results\.json is damaged"):
            compare(runs, tmp_path / "out", 20)


def test_a_run_folder_of_any_name_is_shown_on_one_line(run, tmp_path, capsys):
    found = compare([run("a\n\x1b[31m\udcffb", make_table())], tmp_path / "out", 20)
    comparing.print_comparison(found)
    printed = capsys.readouterr().out
    assert r"/a\n\x1b[31m\xffb: " in printed
    assert "\x1b" not in printed


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_every_unknown_set(run, tmp_path):
    copies = []
    for seed, auroc in ((0, 0.5), (1, 0.7), (2, 0.9)):
        copy = run(f"seed{seed}", make_table())
        results = json.loads((copy / "results.json").read_text())
        results["seed"] = seed
        for numbers in results["unknown"].values():
            numbers["auroc"] = auroc
        (copy / "results.json").write_text(json.dumps(results))
        copies.append(copy)
    comparison = compare(copies, tmp_path / "out", resamples=5)
    (group,) = comparison.groups
    for name in ("noise",):
        found = group.means[MeasureKey("auroc", group.score, name)]
        assert (found.mean, found.deviation, found.runs) == (pytest.approx(0.7), pytest.approx(0.2), 3)
        assert f"AUROC {name}" in (tmp_path / "out" / "comparison.html").read_text()
    # the same seed twice is no sample of seeds
    assert len(compare([copies[0], copies[0]], tmp_path / "out", resamples=5).groups) == 1


def test_a_run_that_is_named_twice_counts_once(run, tmp_path, monkeypatch):
    first, second = run("a", make_table()), run("b", make_table(1))
    once = compare([first, second], tmp_path / "once")
    monkeypatch.chdir(tmp_path)
    again = compare([first, second, Path("b"), tmp_path / "b" / ".." / "a"], tmp_path / "again")
    assert again.rows == once.rows
    assert again.groups == once.groups


def test_a_table_of_groups_has_each_number_once():
    """OpenAUC always equals OSCR: two columns of it look like two findings."""
    assert titles(["a"]) == ["closed set", "total", "OSCR (OpenAUC)", "AUROC a"]


def test_names_in_the_csv_are_no_formulas(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = run("=1+1", make_table())
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"score": {"name": "@SUM(1)"}}))
    compare([Path("=1+1")], tmp_path, resamples=5)
    with open("comparison.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["run"], row["score"]) == ("./=1+1", "'@SUM(1)")
    assert Path(row["run"]).is_dir()


def test_runs_that_differ_in_more_than_their_seed_have_names_that_say_so(run, tmp_path, capsys):
    folders = []
    for seed, samples in ((0, 10), (1, 10), (0, 50), (1, 50)):
        folder = run(f"{samples}-{seed}", make_table())
        results = json.loads((folder / "results.json").read_text())
        model = {"class": "M", "num_samples": samples, "masks": "shared"}
        results |= {"seed": seed, "experiment": "e", "model": model}
        (folder / "results.json").write_text(json.dumps(results))
        folders.append(folder)
    comparison = compare(folders, tmp_path / "out", 5)
    named = [(group.name, group.runs) for group in comparison.groups]
    assert named == [("e M energy (num_samples 10)", 2), ("e M energy (num_samples 50)", 2)]
    assert [row["settings"] for row in comparison.rows] == 2 * ["num_samples 10"] + 2 * ["num_samples 50"]
    comparing.print_comparison(comparison)
    assert f"3  {folders[2]}: M (num_samples 50), energy > 1" in capsys.readouterr().out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<span>num_samples 10</span>") == 2
    assert [row["settings"] for row in compare(folders[:2], tmp_path / "out", 5).rows] == ["", ""]
    results["model"]["mirror"] = True  # of the last, which else is as that before it
    (folders[3] / "results.json").write_text(json.dumps(results))
    settings = [row["settings"] for row in compare(folders[2:], tmp_path / "out", 5).rows]
    assert settings == ["mirror -", "mirror yes"]
