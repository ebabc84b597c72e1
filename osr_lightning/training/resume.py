"""Resuming to the bit: what a checkpoint keeps of a training beside what Lightning does."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LRScheduler

from osr_lightning.data.datamodule import datamodule_of
from osr_lightning.data.resumable_loader import of_all, place
from osr_lightning.errors import UserError
from osr_lightning.recogniser.checkpoint import reading
from osr_lightning.training.loggers import rows_writer


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


def training_state(trainer: Trainer, steps: EpochSteps) -> dict[str, Any]:
    """What a checkpoint keeps to go on with a training, beside Lightning's part; every process must ask."""
    writer, step = rows_writer(trainer.loggers), trainer.global_step - 1
    rows = None if writer is None else list(writer.metrics)
    if rows is not None and steps.ended:
        found = trainer.callback_metrics.items()
        trained = {name: float(value) for name, value in found if name.startswith("train/")}
        # Lightning logs the epoch after its checkpoint is written
        if not any(row.get("step") == step and row.keys() >= trained.keys() for row in rows):
            rows.append({**trained, "epoch": trainer.current_epoch, "step": step})
    return {"steps": steps.state(), "rows": rows, **_optimizers(trainer)}


def resume(trainer: Trainer, state: dict[str, Any], steps: EpochSteps, device: torch.device) -> None:
    """Go on from what `training_state` gave, once there are optimizers; nothing of it, nothing done.

    Raises:
        UserError: where the training began with another optimizer or schedule, naming both.
    """
    for what, now in _optimizers(trainer).items():
        before = state.get(what, now)
        if before != now:
            said = [", ".join(map(str, names)) or "none" for names in (before, now)]
            raise UserError(
                f"the checkpoint was trained with the {what[:-1]} {said[0]}, not {said[1]}: resume with "
                "the options that it was trained with, or train anew without --ckpt_path"
            )
    with reading("the checkpoint"):
        # as Lightning will do once more: what is damaged shows now
        for optimizer, saved in zip(trainer.optimizers, state.get("optimizer_states", ()), strict=False):
            optimizer.load_state_dict(copy.deepcopy(saved))
        for config, saved in zip(trainer.lr_scheduler_configs, state.get("lr_schedulers", ()), strict=False):
            config.scheduler.load_state_dict(copy.deepcopy(saved))
            if type(config.scheduler.optimizer) in (Adam, AdamW):
                _try(config.scheduler)
        if state.get("steps"):
            steps.restore(state["steps"], device)
        if rows := state.get("rows"):
            if not all(isinstance(row, dict) and all(isinstance(name, str) for name in row) for row in rows):
                raise UserError("its rows of metrics.csv are none")
            if (writer := rows_writer(trainer.loggers)) is not None:
                writer.metrics = list(rows)  # in place of the file's, which a killed run may have cut short
                writer.save()


def accept(trainer: Trainer, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Take from a checkpoint what goes on, and drop from it, in place, what may not.

    Returns:
        What `training_state` gave.

    Raises:
        UserError: where it is damaged, is beyond the last epoch, or had other rates than are asked for.
    """
    with reading("the checkpoint"):
        if not _fits(trainer.fit_loop.state_dict(), checkpoint["loops"]["fit_loop"]):
            raise UserError("its loops are not those of a training")
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        if trainer.max_epochs not in (None, -1) and done > trainer.max_epochs:
            raise UserError(
                f"it has {done:,} epochs done, and trainer.max_epochs is {trainer.max_epochs:,}: give as many"
            )
        _refuse_other_rates(trainer, checkpoint.get("hyper_parameters") or {})
        checkpoint["callbacks"] = take_up(trainer, checkpoint.get("callbacks") or {})
        training = dict(checkpoint.get("training") or {})
        training |= {name: checkpoint.get(name) or [] for name in ("optimizer_states", "lr_schedulers")}
        if (datamodule := datamodule_of(trainer)) is not None:
            # Lightning hands it on within epochs only
            states = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or [None]
            datamodule.loader_state = states[0]
    return training


def _refuse_other_rates(trainer: Trainer, before: Mapping[str, Any]) -> None:
    """Stop where a rate is asked for that the optimizer of the checkpoint has not.

    Raises:
        UserError: naming it.
    """
    now = getattr(trainer.lightning_module, "hparams", {})
    for name in ("learning_rate", "weight_decay"):
        wanted, had = now.get(name), before.get(name)
        if wanted is not None and wanted != had:
            told = "what was planned" if had is None else f"{had:g}"
            raise UserError(
                f"it was trained with {told} as model.{name}, with which its optimizer goes on, and not with "
                f"{wanted:g}: leave that as it was, or train anew without --ckpt_path"
            )


def take_up(trainer: Trainer, callbacks: dict[str, Any]) -> dict[str, Any]:
    """The states of callbacks that a resumed training may take up.

    Of a callback that keeps checkpoints nothing is taken that names files outside of this run's own folder:
    Lightning deletes what it calls the best before.

    Raises:
        UserError: where one says of the best checkpoint what none can.
    """
    keeping = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    own = {os.path.realpath(one.dirpath) for one in keeping if one.dirpath}
    taken = {name: state for name, state in callbacks.items() if _stays_in(own, state)}
    for one in keeping:
        if one.state_key in taken and not _is_of_best(taken[one.state_key]):
            raise UserError("what it says of the best checkpoint is damaged")
    return taken


def _stays_in(folders: set[str], state: object) -> bool:
    """Whether all paths in a callback's state lie in these folders."""
    if not isinstance(state, dict):
        return True
    paths = [value for name, value in state.items() if name.endswith("_path") and value]
    paths += list(state.get("best_k_models") or {})
    return all("://" not in str(p) and os.path.realpath(os.path.dirname(p)) in folders for p in paths)


def _is_of_best(state: dict[str, Any]) -> bool:
    """Whether it has the paths, and scores that can be compared; a KeyError where one is missing."""
    scores = [state["best_model_score"], state["kth_value"], *state["best_k_models"].values()]
    paths = [state["best_model_path"], state["kth_best_model_path"], *state["best_k_models"]]
    return all(isinstance(path, str) for path in paths) and all(
        score is None or (isinstance(score, Tensor) and score.numel() == 1) for score in scores
    )


def _try(schedule: LRScheduler) -> None:
    """Take a step on copies: an optimizer and a schedule load any state, and fail at their next step."""
    copied = copy.deepcopy(schedule)
    for group in copied.optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
            kept = [value for value in copied.optimizer.state[weight].values() if isinstance(value, Tensor)]
            # else torch reads past their end
            if any(value.ndim and value.shape != weight.shape for value in kept):
                raise UserError("its optimizer's moments are of other shapes than the weights")
    copied.optimizer.step()
    if copied.last_epoch < getattr(copied, "total_steps", math.inf):  # one that is over has no further step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a copy does not know that its optimizer went first
            copied.step()


def _fits(own: object, found: object) -> bool:
    """Whether a loop's state has the form of this trainer's own, and counts that can be."""
    if isinstance(own, dict):
        return isinstance(found, dict) and all(
            name in found and _fits(own[name], found[name]) for name in own
        )
    if isinstance(own, bool):
        return isinstance(found, bool)
    if isinstance(own, int):
        return isinstance(found, int) and 0 <= found < 2**62
    return True


def _optimizers(trainer: Trainer) -> dict[str, list[str]]:
    return {
        "optimizers": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "schedules": [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs],
    }
