"""How long a training waits for its images."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from osr_lightning.data.datamodule import datamodule_of
from osr_lightning.training.console import say

SHARE = 0.3  # of an epoch's time that is worth a word
_SECONDS = 5.0  # of a shorter epoch nothing is said


class LoaderWatch(Callback):
    """Says once when the loader, not the network, limits the training; images in memory are always there."""

    def __init__(self) -> None:
        self._begin = self._end = self._waited = 0.0
        self._said = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin = self._end = time.perf_counter()
        self._waited = 0.0

    def on_train_batch_start(self, *args: Any) -> None:  # noqa: ANN401
        """The batch is there."""
        self._waited += time.perf_counter() - self._end

    def on_train_batch_end(self, *args: Any) -> None:  # noqa: ANN401
        """The next one is wanted."""
        self._end = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what was seen."""
        datamodule = datamodule_of(trainer)
        if datamodule is None or isinstance(datamodule.tables.load_training()[0].images, Tensor):
            return
        seconds = time.perf_counter() - self._begin
        share = self._waited / seconds
        if self._said or seconds < _SECONDS or share < SHARE:
            return
        self._said = True
        say(
            f"the training waited for its images {share:.0%} of the epoch: raise data.num_workers, or "
            "data.memory_limit if the images fit in memory, or lower data.image_size"
        )
