"""The checkpoints of a run: when they are written, and that they are whole."""

from __future__ import annotations

import os
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import Version
from torch import Tensor

from osr_lightning.data.datamodule import datamodule_of
from osr_lightning.errors import UserError
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.training.callbacks.interruption import Interruption

FEW = 500  # validation images, below which accuracies are often equal


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoints that replace earlier ones at once or not at all; Lightning copies over them.

    What was read ahead of Lightning, as the network must be there before the images, is not read again.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ahead: tuple[tuple[object, ...], dict[str, Any]] | None = None

    def hold(self, path: _PATH, checkpoint: dict[str, Any]) -> None:
        """Keep what was read of this file for whoever takes it next."""
        self._ahead = _file_key(path), checkpoint

    def read_ahead(self, path: _PATH) -> dict[str, Any]:
        """Read a checkpoint, and keep it for whoever takes it next.

        Raises:
            UserError: see `osr_lightning.recogniser.checkpoint.read`.
        """
        key = _file_key(path)
        if self._ahead is None or self._ahead[0] != key:
            self.hold(path, checkpoints.read(path))
        assert self._ahead is not None
        return self._ahead[1]

    def take(self, path: _PATH) -> dict[str, Any]:
        """What was read ahead, or is read now; the caller may change it.

        Raises:
            UserError: see `osr_lightning.recogniser.checkpoint.read`.
        """
        checkpoint = self.read_ahead(path)
        self._ahead = None
        return checkpoint

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read one, and the version of Lightning that its training had; ours where it had none.

        Raises:
            UserError: where that is no version of Lightning 2, or the file is no checkpoint of this project.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, *args, **kwargs)
        checkpoint = self.take(path)
        version = checkpoint.setdefault("pytorch-lightning_version", lightning.__version__)
        with checkpoints.reading(path):
            if Version(version) < Version("2"):
                raise UserError(f"it is of Lightning {version}; 2.0 and later can go on with it")
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write one."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            checkpoints.write(checkpoint, path)


class BestCheckpoint(ModelCheckpoint):
    """The best epoch by validation accuracy; of equal ones the first.

    Of a frozen backbone's last layer, whose weights have one best solution, it is the epoch of the lowest
    validation loss: by accuracy an early one, far from that solution, often wins by an image.

    Below `FEW` validation images many epochs are equal, as one image more or less is a step of 1 / n: then of
    equal ones that of the lowest validation loss, which counts by how much each image is right.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self._loss: float | None = None  # of the best epoch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the loss where a last layer is trained alone."""
        super().setup(trainer, pl_module, stage)
        if getattr(pl_module, "trains_head_alone", False) and self.monitor == "val/accuracy":
            self.monitor, self.mode = "val/loss", "min"
            self.kth_value = torch.tensor(torch.inf)

    @property
    def state_key(self) -> str:
        """That of Lightning's class, as checkpoints of before have it."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether this epoch is the best until now; every process must ask."""
        better = super().check_monitor_top_k(trainer, current)
        found = trainer.callback_metrics.get("val/loss")
        loss = None if found is None else float(found)
        if not better and current is not None and _has_few(trainer) and self._loss is not None:
            equal = self.best_model_score is not None and bool(current == self.best_model_score)
            lower = loss is not None and loss < self._loss
            better = trainer.strategy.reduce_boolean_decision(equal and lower)
        if better:
            self._loss = loss
        return better

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, and the loss of the best epoch."""
        return {**super().state_dict(), "best_loss": self._loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, or Lightning's own."""
        super().load_state_dict(state_dict)
        loss = state_dict.get("best_loss")
        self._loss = loss if isinstance(loss, float) else None


def _has_few(trainer: Trainer) -> bool:
    datamodule = datamodule_of(trainer)
    return datamodule is not None and len(datamodule.tables.load_training()[1]) < FEW


def checkpoint_callbacks(minutes: float | None, *, keep: bool) -> list[Callback]:
    """Callbacks that keep ``best.ckpt``, see `BestCheckpoint`, and ``last.ckpt``, to resume from.

    Lightning's own ``save_last`` is the last best one, not the last epoch.

    Args:
        minutes: between two ``last.ckpt`` within an epoch; None for none.
        keep: whether to write any.
    """
    if not keep:
        return [Interruption(None)]
    best = BestCheckpoint(
        filename="best",
        monitor="val/accuracy",
        mode="max",
        # a better checkpoint replaces best.ckpt instead of becoming best-v1.ckpt
        enable_version_counter=False,
    )
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    return [best, last, Interruption(last, minutes)]


def _file_key(path: _PATH) -> tuple[object, ...]:
    """Tells a file from what took its place."""
    try:
        status = os.stat(path)
    except OSError:  # reading it says what is wrong
        return (str(path),)
    return str(path), status.st_ino, status.st_mtime_ns, status.st_size
