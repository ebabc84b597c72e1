"""Allocator settings and the precision of training, in the processes and passes that they are for."""

import functools

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.training.module import MCDropoutClassifier
from osr_lightning.training.trainer import OpenSetTrainer


class Spy(MCDropoutClassifier):
    """Notes which passes run in bfloat16."""

    def __init__(self) -> None:
        network = functools.partial(MCDropoutCNN, channels=(2, 3), hidden=5)
        super().__init__(network, score="generalized_entropy")  # which needs no calibrate after fit
        self.seen: dict[str, set[bool]] = {}

    def note(self, stage: str) -> None:
        self.seen.setdefault(stage, set()).add(torch.is_autocast_enabled("cpu"))

    def training_step(self, batch, batch_idx):
        self.note("train")
        return super().training_step(batch, batch_idx)

    def classify(self, batch):
        self.note(self.trainer.state.stage.value)
        results = super().classify(batch)
        assert (results["logits"].dtype == torch.float32) or self.trainer.precision == "bf16-mixed"
        return results


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize(
    ("precision", "native", "in_training", "elsewhere"),
    [
        ("auto", True, True, False),
        ("auto", False, False, False),
        ("32-true", True, False, False),
        ("bf16-mixed", False, True, True),
    ],
)
def test_only_training_steps_are_bfloat16(
    precision, native, in_training, elsewhere, monkeypatch, tiny_root, tmp_path
):
    monkeypatch.setattr("osr_lightning.training.precision.computes_bfloat16", lambda: native)
    model, data = (
        Spy(),
        OpenSetDataModule(root=str(tiny_root), unknown={"noise": f"npz:{tiny_root}/unknown.npz"}),
    )
    trainer = OpenSetTrainer(
        default_root_dir=str(tmp_path),
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    trainer.predict(model, datamodule=data)
    passes = {"sanity_check", "validate", "test", "predict"}
    assert model.seen == {"train": {in_training}, **{name: {elsewhere} for name in passes}}
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


def test_a_precision_plugin_of_the_users_own_stays(monkeypatch):
    monkeypatch.setattr("osr_lightning.training.precision.computes_bfloat16", lambda: True)
    own = MixedPrecision("bf16-mixed", "cpu")
    assert OpenSetTrainer(logger=False, accelerator="cpu", plugins=[own]).precision_plugin is own
