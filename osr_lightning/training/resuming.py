"""What a checkpoint keeps of a training, beside what Lightning does, so that it goes on to the bit."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from osr_lightning.checkpoint import reading
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.resumable import of_all, place
from osr_lightning.errors import UserError
from osr_lightning.training.loggers import logged_rows, resume_rows


class EpochSteps:
    """What the steps of an epoch gave, for metrics that are updated once, at its end.

    Attributes:
        losses: ``()`` of each step until now.
        ended: whether the epoch is over and the next has not begun.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self._predicted: list[Tensor] = []
        self._labels: list[Tensor] = []
        self.ended = False

    def add(self, loss: Tensor, predicted: Tensor, label: Tensor) -> None:
        """A step's loss ``()``, and classes and labels ``(B,)``."""
        for kept, value in zip(self._lists(), (loss, predicted, label), strict=True):
            kept.append(value)
        self.ended = False

    def take(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses and sizes ``(steps,)``, classes and labels ``(images,)``; then begin again."""
        losses, predicted, labels = map(tuple, self._lists())
        for kept in self._lists():
            kept.clear()
        self.ended = True
        sizes = torch.tensor([len(label) for label in labels], device=losses[0].device)
        return torch.stack(losses), sizes, torch.cat(predicted), torch.cat(labels)

    def state(self) -> list[list[list[Tensor]]]:
        """The steps of every process; all must ask."""
        return of_all([[value.cpu() for value in kept] for kept in self._lists()])

    def restore(self, processes: list[list[list[Tensor]]], device: torch.device) -> None:
        """Go on from what `state` gave."""
        rank, _ = place()
        if rank < len(processes):
            for kept, values in zip(self._lists(), processes[rank], strict=True):
                kept[:] = [value.to(device) for value in values]

    def _lists(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self.losses, self._predicted, self._labels


def training_state(module: LightningModule, steps: EpochSteps) -> dict[str, Any]:
    """What a checkpoint keeps to go on with a training, beside Lightning's part; every process must ask."""
    trainer = module.trainer
    rows, step = logged_rows(trainer.loggers), trainer.global_step - 1
    if rows is not None and steps.ended:
        found = trainer.callback_metrics.items()
        trained = {name: float(value) for name, value in found if name.startswith("train/")}
        # Lightning logs the epoch after its checkpoint is written
        if not any(row.get("step") == step and row.keys() >= trained.keys() for row in rows):
            rows.append({**trained, "epoch": trainer.current_epoch, "step": step})
    return {"steps": steps.state(), "rows": rows, **_optimizers(trainer)}


def resume(module: LightningModule, state: dict[str, Any], steps: EpochSteps) -> None:
    """Go on from what `training_state` gave, once there are optimizers; nothing of it, nothing done.

    Raises:
        UserError: where the training began with another optimizer or schedule, naming both.
    """
    trainer = module.trainer
    for what, now in _optimizers(trainer).items():
        before = state.get(what, now)
        if before != now:
            said = [", ".join(map(str, names)) or "none" for names in (before, now)]
            raise UserError(
                f"the checkpoint was trained with the {what[:-1]} {said[0]}, not {said[1]}: resume with "
                "the options that it was trained with, or train anew without --ckpt_path"
            )
    with reading("the checkpoint"):
        if state.get("steps"):
            steps.restore(state["steps"], module.device)
        if state.get("rows"):
            resume_rows(trainer.loggers, state["rows"])


def resume_loader(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Have the datamodule's loader go on where it stopped; Lightning does so within epochs only."""
    datamodule = getattr(trainer, "datamodule", None)
    if isinstance(datamodule, OpenSetDataModule):
        with reading("the checkpoint"):
            states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or [None]
            datamodule.loader_state = states[0]


def _optimizers(trainer: Trainer) -> dict[str, list[str]]:
    return {
        "optimizers": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "schedules": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
    }
