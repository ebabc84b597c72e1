"""What the evaluation of a test is asked for, and what it hands on."""

import csv
import shutil

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.evaluation.mistakes import examples
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.training.callbacks.evaluator import Evaluator


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_figures_cannot_take_is_refused_before_training(seed):
    with pytest.raises(UserError, match=f"evaluation.seed must be from 0 to 4294967295, got {seed}"):
        Evaluator(seed=seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_any_other_seed_serves(seed):
    assert Evaluator(seed=seed).seed == seed


def logged(run, name):
    with open(run / "metrics.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_learning_rate_is_logged_once_an_epoch(small_run):
    rates = logged(small_run, "train/learning_rate")
    assert len(rates) == len(logged(small_run, "train/loss")) > 0
    assert all(rate >= 0 for rate in rates)


def test_tensorboard_opens_on_curves_and_has_the_numbers_of_the_test(small_run):
    events = EventAccumulator(str(small_run)).Reload()
    tags = sorted(events.Tags()["scalars"])
    assert tags[:5] == ["accuracy/train", "accuracy/val", "learning_rate/train", "loss/train", "loss/val"]
    assert all(tag.startswith(("test/", "threshold/")) for tag in tags[5:])
    table = PredictionTable.load(small_run)
    assert {f"test/auroc/{name}" for name in table.source_names[1:]} <= {*tags}
    right = (table.predicted_class == table.label)[table.known].mean()
    assert events.Scalars("test/closed_set_accuracy")[-1].value == pytest.approx(right)


def test_the_figures_know_the_tested_epoch_and_the_report_its_mistakes(
    small, small_run, tmp_path, monkeypatch
):
    run = tmp_path / "lightning_logs" / "a" / "version_0"
    shutil.copytree(small_run, run)
    seen = []
    monkeypatch.setattr(
        "osr_lightning.evaluation.figures.each_figure", lambda material: seen.append(material) or []
    )
    command = ["test", *small, f"--ckpt_path={run}/checkpoints/best.ckpt", "--evaluation.figures=true"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}", "--trainer.experiment=b"]) == 0
    accuracy = logged(run, "val/accuracy")
    assert seen[0].epoch == 1 + accuracy.index(max(accuracy))
    tested = tmp_path / "lightning_logs" / "b" / "version_0"
    found = examples(PredictionTable.load(tested))
    assert found
    for example in found:
        with Image.open(tested / "figures" / "mistakes" / f"{example.row}.png") as image:
            assert image.size == (28, 28)
