"""Allocator settings and the precision of training, in the processes and passes that they are for."""

import functools
import os
import platform
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.training import precision
from osr_lightning.training.module import MCDropoutClassifier
from osr_lightning.training.trainer import OpenSetTrainer

FAULTS = """
import ctypes, resource, torch
from osr_lightning.training.precision import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        activations = [torch.ones(2 * 2**20) for _ in range(4)]  # 8 MiB each
        del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for setting in (-3, -1):  # glibc starts with 128 KiB, and raises them or not by what the process does
    ctypes.CDLL(None).mallopt(setting, 128 * 2**10)
print(faults())
keep_freed_memory()
faults()
print(faults())
"""
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept():
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    by_default, kept = map(int, done.stdout.split())
    assert by_default > 100_000  # 20 times 8,192 pages
    assert kept < 1000


def called(name: str | None) -> None:
    pytest.fail("called the C library")


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_allocator_set_by_the_user_is_left_alone(setting, monkeypatch):
    monkeypatch.setenv(setting, "1")
    monkeypatch.setattr(precision.ctypes, "CDLL", called)
    precision.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    for setting in SETTINGS:
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(precision.ctypes, "CDLL", called)
    precision.keep_freed_memory()


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
