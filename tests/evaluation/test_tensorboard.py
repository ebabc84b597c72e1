"""What TensorBoard is given."""

import dataclasses
import io

import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.result_loggers import log_projector, log_test
from osr_lightning.training.loggers import ClaimingTensorBoardLogger


def test_names_of_any_characters_leave_the_projectors_table_whole(tmp_path, capsys):
    table = PredictionTable(
        class_names=("a\nb", "c\td"),
        source_names=("known\r", "\udcff\x1b"),
        groups={},
        score_name="energy",
        threshold=1.0,
        source=np.array([0, 0, 1]),
        label=np.array([0, 1, 2]),
        predicted_class=np.array([0, 1, 1]),
        confidence=np.ones(3),
        nll=np.ones(3),
        scores={"energy": np.zeros(3)},
        logits=np.zeros((3, 2), np.float32),
    )
    table = dataclasses.replace(table, files=("x\n.png",) * 3)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    for _ in range(2):  # the second test of a run folder
        log_projector(logger, table, torch.zeros(3, 1, 4, 4, dtype=torch.uint8), 10, seed=0, step=0)
    logger.finalize("success")
    assert capsys.readouterr().out == ""
    (file,) = tmp_path.rglob("metadata.tsv")
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        ["label", "prediction", "source", "score"],
        [r"a\nb", r"a\nb", r"known\r", "0"],
        [r"c\td", r"c\td", r"known\r", "0"],
        ["unknown", r"c\td", r"\udcff\x1b", "0"],
    ]


def test_many_classes_leave_fewer_points_in_the_projector(tmp_path, monkeypatch):
    monkeypatch.setattr("osr_lightning.evaluation.result_loggers._MOST_NUMBERS", 120)
    for classes, points in ((2, 50), (3, 40)):
        table = PredictionTable(
            class_names=tuple("abc"[:classes]),
            source_names=("known",),
            groups={},
            score_name="energy",
            threshold=1.0,
            source=np.zeros(60, np.int64),
            label=np.zeros(60, np.int64),
            predicted_class=np.zeros(60, np.int64),
            confidence=np.ones(60),
            nll=np.ones(60),
            scores={"energy": np.zeros(60)},
            logits=np.zeros((60, classes), np.float32),
        )
        logger = TensorBoardLogger(tmp_path / str(classes), name="", version="")
        log_projector(logger, table, torch.zeros(60, 1, 4, 4, dtype=torch.uint8), 50, seed=0, step=0)
        logger.finalize("success")
        (file,) = (tmp_path / str(classes)).rglob("tensors.tsv")
        assert len(file.read_text().splitlines()) == points


def test_figures_are_given_as_their_files(tmp_path):
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(3, 5, 4))
    image.save(tmp_path / "roc.png")
    logger = TensorBoardLogger(tmp_path, name="", version="")
    results = {
        "closed_set": {"accuracy": 0.5},
        "open_set": dict.fromkeys(("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc"), 0.5),
        "unknown": {
            "far/off": {"auroc": 0.75, "unknown_accuracy": 1.0},
            "near": {"auroc": 0.25, "unknown_accuracy": 0.125},
            "none": {"auroc": None, "unknown_accuracy": None},
        },
        "threshold": {"value": 1.0},
        "model": {"class": "x", "network": "N"},
        "data": {"channels": 1, "image_size": 28, "known": {"source": "mnist"}},
        "seed": 0,
    }
    report = tmp_path / "report.html"
    log_test(logger, results, [tmp_path / "roc.png"], {"augment": "digits", "costs": {}}, 3, [report])
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    (event,) = events.Images("test/roc")
    assert (event.step, event.width, event.height) == (3, 5, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), np.asarray(image))
    assert (
        events.Tensors("report/text_summary")[0]
        .tensor_proto.string_val[0]
        .decode()
        .endswith(f"({report.as_uri()})")
    )
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    settings = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    assert settings["augment"].string_value == "digits"
    assert settings["network"].string_value == "N"
    assert settings["image_size"].number_value == 28
    assert "costs" not in settings
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    names = ("closed_set_accuracy", "known_accuracy", "unknown_accuracy", "total_accuracy", "auroc")
    assert found == {
        **{f"test/{name}": [(3, 0.5)] for name in names},
        "test/auroc/far/off": [(3, 0.75)],
        "test/auroc/near": [(3, 0.25)],
        "test/accuracy/mnist": [(3, 0.5)],
        "test/accuracy/far/off": [(3, 1.0)],
        "test/accuracy/near": [(3, 0.125)],
        "test/threshold": [(3, 1.0)],
    }


def test_curves_come_before_the_numbers_of_the_test(tmp_path):
    """TensorBoard sorts by tag and opens on the first ones."""
    logger = ClaimingTensorBoardLogger(str(tmp_path), "a", None, default_hp_metric=False)
    for step in (0, 1):
        logged = dict.fromkeys(("train/loss", "train/accuracy", "train/learning_rate", "epoch"), 1.0)
        logger.log_metrics(logged | {"val/loss": 0.5, "val/accuracy": 0.25, "test/auroc": 0.75}, step)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    curves = ["accuracy/train", "accuracy/val", "learning_rate/train", "loss/train", "loss/val"]
    assert sorted(events.Tags()["scalars"]) == [*curves, "test/auroc"]
    assert [event.value for event in events.Scalars("loss/val")] == [0.5, 0.5]
    assert [event.step for event in events.Scalars("accuracy/train")] == [0, 1]
