"""model.calibration class_quantile, from the training to the exported graph."""

import csv
import json

import numpy as np
import pytest
import torch
from quick import FAST

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.recogniser import checkpoint as checkpoints


@pytest.fixture(scope="module")
def run(small, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    words = ["run", *small, *FAST, "--data.val_fraction=0.5", "--model.score=msp", "--model.alpha=0.2"]
    words += ["--model.calibration=class_quantile", f"--trainer.default_root_dir={root}"]
    assert main(words) == 0
    (folder,) = root.glob("lightning_logs/*/version_0")
    return folder


def test_the_results_name_each_classs_threshold(run):
    results = json.loads((run / "results.json").read_text())
    threshold = results["threshold"]
    recogniser = load(run / "checkpoints" / "best.ckpt")
    record = recogniser.threshold.record
    assert threshold["method"] == "class_quantile"
    assert [*threshold["class_thresholds"]] == [*recogniser.spec.classes]
    assert tuple(threshold["class_thresholds"].values()) == record.class_thresholds
    assert len({*record.class_thresholds}) > 1
    assert "threshold</th>" in (run / "report.html").read_text()


def test_rows_hold_shifted_scores_which_one_number_decides(run):
    recogniser = load(run / "checkpoints" / "best.ckpt")
    record = recogniser.threshold.record
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all((row["prediction"] == "unknown") == (float(row["score"]) > record.value) for row in rows)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 1, 28, 28), dtype=np.uint8))
    shifted = recogniser.describe(images)
    recogniser.threshold.forget_shifts()
    plain = recogniser.describe(images)
    expected = plain["score/msp"] + torch.tensor(record.class_shifts)[plain["predicted_class"]]
    torch.testing.assert_close(shifted["score/msp"], expected)


def test_the_exported_graph_decides_alike(run, tmp_path):
    pytest.importorskip("onnxscript")
    path = run / "checkpoints" / "best.ckpt"
    assert main(["export", f"--ckpt_path={path}", f"--output={tmp_path}/graph.onnx"]) == 0
    images = np.random.default_rng(1).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    mine, theirs = load(path).predict(images), load(tmp_path / "graph.onnx").predict(images)
    assert [one.label for one in mine] == [one.label for one in theirs]
    np.testing.assert_allclose([one.score for one in mine], [one.score for one in theirs], rtol=1e-4)
    np.testing.assert_allclose([one.p_value for one in mine], [one.p_value for one in theirs], atol=0.02)


def test_another_calibration_begins_with_the_scores_as_they_are(run, small, tmp_path):
    found = []
    for number, source in enumerate((run / "checkpoints" / "best.ckpt", tmp_path / "0.ckpt")):
        words = ["calibrate", f"--ckpt_path={source}", *FAST, "--trainer.logger=false"]
        method = ("known_quantile", "class_quantile")[number]
        target = tmp_path / f"{number}.ckpt"
        assert main([*words, f"--model.calibration={method}", f"--output={target}"]) == 0
        found.append(load(target).threshold.record)
    assert found[0].class_shifts == ()
    assert found[1] == load(run / "checkpoints" / "best.ckpt").threshold.record


def test_classes_with_too_few_images_are_told_before_the_training(small, tmp_path, capsys):
    words = ["run", *small, *FAST, "--model.calibration=class_quantile", "--model.alpha=0.1"]
    assert main([*words, f"--trainer.default_root_dir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert "class_quantile with alpha 0.1 needs 9 validation images of each class" in said
    assert "model.few_share true" in said
    assert not (tmp_path / "lightning_logs").exists()


def test_thresholds_of_other_classes_are_refused(run, tmp_path):
    checkpoint = checkpoints.read(run / "checkpoints" / "best.ckpt")
    record = checkpoint["state_dict"]["recogniser.threshold._extra_state"]["records"]["msp"]
    record["class_shifts"] = record["class_shifts"][:3]
    checkpoints.write(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match="thresholds of 3 classes, and there are 10"):
        load(tmp_path / "odd.ckpt")
