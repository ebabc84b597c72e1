"""Interrupting a training so that it can go on: ``last.ckpt`` within epochs, SIGTERM and SIGINT (Ctrl-C)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed as dist

from osr_lightning.data.resumable_loader import place
from osr_lightning.training.console import say


class Interruption(Callback):
    """Keeps ``last.ckpt`` within epochs: every so many minutes, and before a signal ends the training.

    SIGTERM and SIGINT (Ctrl-C) end it after the step at hand with the exit statuses 143 and 130; a second
    one ends it at once. All processes stop at the same step.

    Args:
        last: what writes ``last.ckpt`` at the end of an epoch; None to write none.
        minutes: between two checkpoints within an epoch; None for none.
    """

    def __init__(self, last: ModelCheckpoint | None, minutes: float | None = None) -> None:
        self.last, self.minutes = last, minutes
        self._signal = 0
        self._saved = 0.0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which stops within steps and exits with 0."""
        self._saved = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers.setdefault(number, signal.getsignal(number))
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise SystemExit(128 + number)
        self._signal = number
        say(
            f"\n{signal.Signals(number).name}: stopping after this step; once more stops at once", always=True
        )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Write ``last.ckpt`` where it is due, and end where a signal came."""
        due = self.minutes is not None and time.monotonic() - self._saved >= 60 * self.minutes
        number, due = _agree(trainer, self._signal, due)
        if not (number or due) or not _between_steps(trainer, args[-1]):
            return  # the end of the epoch is near, and its own checkpoint
        self._save(trainer)
        if number:
            self._end(trainer, number)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End where a signal came after the last step of the epoch before."""
        number, _ = _agree(trainer, self._signal, False)
        if number:
            self._end(trainer, number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back; one that came in the last epoch counts for what follows."""
        self._give_back()
        if self._signal:
            raise SystemExit(128 + self._signal)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _save(self, trainer: Trainer) -> None:
        self._saved = time.monotonic()
        if self.last is not None and self.last.dirpath is not None:
            trainer.save_checkpoint(Path(self.last.dirpath) / "last.ckpt", weights_only=False)

    def _end(self, trainer: Trainer, number: int) -> None:
        where = "" if self.last is None else "; go on with --ckpt_path last"
        say(f"stopped by {signal.Signals(number).name} at step {trainer.global_step}{where}", always=True)
        launched = trainer.local_rank > 0 and "TORCHELASTIC_RUN_ID" not in os.environ
        # the process that launched this one answers for it, and would be killed for another status than 0
        raise SystemExit(0 if launched else 128 + number)


def _agree(trainer: Trainer, number: int, due: bool) -> tuple[int, bool]:
    """The same answer on every process: any one's signal, any one's wish for a checkpoint."""
    if place()[1] == 1:
        return number, due
    wish = torch.tensor([number, int(due)], device=trainer.strategy.root_device)
    dist.all_reduce(wish, dist.ReduceOp.MAX)
    number, asked = wish.tolist()
    return number, bool(asked)


def _between_steps(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a checkpoint after this batch resumes exactly: no gradients are kept, no validation follows."""
    done, check = batch_idx + 1, trainer.val_check_batch
    validates = check is not None and check != float("inf") and done % check == 0
    return not (trainer.is_last_batch or validates or done % trainer.accumulate_grad_batches)
