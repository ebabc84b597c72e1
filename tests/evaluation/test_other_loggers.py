"""What loggers other than TensorBoard's are given: MLflow's own store, and one with Lightning's interface."""

import json

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from quick import TRAINER

from osr_lightning import BaselineClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.__main__ import main
from osr_lightning.evaluation.result_loggers import log_test
from osr_lightning.training.callbacks.evaluator import Evaluator

RESULTS = {
    "closed_set": {"accuracy": 0.5},
    "open_set": {"known_accuracy": 0.25, "unknown_accuracy": 1.0, "total_accuracy": 0.75, "auroc": None},
    "unknown": {"far": {"auroc": 0.875, "unknown_accuracy": 0.125}},
    "threshold": {"value": 2.0},
    "model": {"class": "MCDropoutClassifier", "network": "N"},
    "data": {"channels": 1, "image_size": 28, "known": {"source": "mnist"}},
    "seed": 7,
}
NUMBERS = {
    "test/closed_set_accuracy": 0.5,
    "test/known_accuracy": 0.25,
    "test/unknown_accuracy": 1.0,
    "test/total_accuracy": 0.75,
    "test/threshold": 2.0,
    "test_accuracy/mnist": 0.25,
    "test_accuracy/far": 0.125,
    "test_auroc/far": 0.875,
}


class Told(Logger):
    """Keeps what it is told, as the logger of Weights & Biases takes it."""

    def __init__(self, folder):
        self.folder, self.params, self.metrics, self.images = folder, {}, {}, {}

    name, version = "project", "run7"

    @property
    def save_dir(self):
        return str(self.folder)

    def log_hyperparams(self, params, *args, **kwargs):
        self.params |= dict(params)

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics

    def log_image(self, key, images, step=None):
        self.images[key] = (images, step)


def files(folder):
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(folder / "roc.png")
    (folder / "results.json").write_text("{}")
    return [folder / "roc.png"], [folder / "results.json"]


def test_a_logger_with_images_gets_figures_numbers_and_settings(tmp_path):
    logger = Told(tmp_path)
    figures, beside = files(tmp_path)
    log_test(logger, RESULTS, figures, {"alpha": 0.1, "costs": {}}, 3, beside)
    assert logger.metrics == NUMBERS
    assert logger.params == {
        "trained/alpha": 0.1,
        "trained/model": "MCDropoutClassifier",
        "trained/network": "N",
        "trained/channels": 1,
        "trained/image_size": 28,
        "trained/seed": 7,
    }
    assert logger.images == {"test/roc": ([str(tmp_path / "roc.png")], 3)}


@pytest.mark.filterwarnings("ignore")  # of mlflow's own
def test_mlflow_keeps_them_in_its_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("osr", tracking_uri=f"file:{tmp_path}/mlruns")
    logger.log_hyperparams({"alpha": None})  # as Lightning does when a fit begins
    figures, beside = files(tmp_path)
    log_test(logger, RESULTS, figures, {"alpha": 0.1}, 3, beside)
    run = logger.experiment.get_run(logger.run_id).data
    assert run.metrics == NUMBERS
    assert (run.params["alpha"], run.params["trained/alpha"]) == ("None", "0.1")
    kept = {
        p.path for where in ("", "figures") for p in logger.experiment.list_artifacts(logger.run_id, where)
    }
    assert kept == {"figures", "figures/roc.png", "results.json"}


def test_ours_are_left_alone(tmp_path):
    logger = CSVLogger(tmp_path)
    log_test(logger, RESULTS, [], {}, 3)
    assert not logger.experiment.metrics


def test_a_run_has_its_folder_beside_a_logger_that_has_none(tiny_root, tmp_path):
    logger = Told(tmp_path / "elsewhere")
    evaluator = Evaluator(figures=False, projector_points=0, bootstrap=2)
    options = {**TRAINER, "max_epochs": 1, "default_root_dir": str(tmp_path), "callbacks": [evaluator]}
    data = OpenSetDataModule(root=str(tiny_root), unknown={"noise": "noise:uniform"}, batch_size=160)
    OpenSetTrainer(**options, logger=logger).run(BaselineClassifier("BaselineCNN", score="msp"), data)
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert (folder / "metrics.csv").is_file()
    assert logger.metrics["test/total_accuracy"] == pytest.approx(results["open_set"]["total_accuracy"])
    assert logger.metrics["test_accuracy/noise"] == results["unknown"]["noise"]["unknown_accuracy"]
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.filterwarnings("ignore:.*(LeafSpec|does not have many workers|logging interval)")
def test_lightnings_own_trainer_writes_into_the_part_that_is_the_runs(tiny_root, tmp_path):
    logger = Told(tmp_path)
    evaluator = Evaluator(figures=False, projector_points=0, bootstrap=2)
    trainer = Trainer(
        **TRAINER, max_epochs=1, logger=logger, callbacks=[evaluator], enable_checkpointing=False
    )
    data = OpenSetDataModule(root=str(tiny_root), unknown={"noise": "noise:uniform"}, batch_size=160)
    model = BaselineClassifier("BaselineCNN", score="msp")
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert (tmp_path / "project" / "run7" / "results.json").is_file()
    assert logger.metrics["test_accuracy/noise"] >= 0


def test_the_command_line_adds_a_logger_to_the_run_folder(small, tmp_path):
    words = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}/own"]
    assert main(["fit", *small, f"--trainer.default_root_dir={tmp_path}", *words]) == 0
    assert not (tmp_path / "lightning_logs").exists()  # it has a folder itself
    assert list(tmp_path.glob("own/lightning_logs/version_0/metrics.csv"))
