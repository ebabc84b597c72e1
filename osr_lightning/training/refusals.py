"""What would end a command late or leave nothing of it, refused before it begins."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import le
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    Checkpoint,
    Timer,
)

from osr_lightning.data.datamodule import OpenSetDataModule, datamodule_of
from osr_lightning.errors import UserError, check_range, did_you_mean, missing_package, needs
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.training.module import CLASSIFIERS, OpenSetClassifier

# what `OpenSetClassifier` logs, which callbacks and schedules may watch
_LOGGED = ("val/loss", "val/accuracy", "train/loss", "train/accuracy", "train/learning_rate")
_LIGHTNINGS = ("epoch", "step")  # of a ModelCheckpoint
_OWN = ("lightning.", "osr_lightning.")
_LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}
_MACHINE = ("accelerator", "strategy", "precision", "profiler")  # that may need a package
_BASES = (BaseFinetuning, BasePredictionWriter, Checkpoint)  # whose subclasses do something
# callbacks that train some steps and go back, and what gives the value they look for
_FINDERS = {"BatchSizeFinder": "data.batch_size", "LearningRateFinder": "model.learning_rate"}


# options, when the trainer is made ------------------------------------------------------------------------


def check_limits(options: Mapping[str, Any]) -> None:
    """Refuse what would end a training before it begins, or by a division by 0 in it.

    Raises:
        UserError: naming the option.
    """
    if options.get("barebones"):
        raise UserError(
            "trainer.barebones leaves out the checkpoints and the results that every command here is for: "
            "leave it out, or give lightning.pytorch.Trainer the model"
        )
    strategy = options.get("strategy")
    if isinstance(strategy, str) and strategy.endswith(("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy {strategy} brings no checkpoints back from its processes: use ddp")
    require = partial(check_range, "trainer.", options)
    require("checkpoint_minutes", lambda minutes: 0 < minutes < math.inf, "be above 0")
    for name in ("max_epochs", "max_steps"):
        require(name, lambda count: count >= -1 and count != 0, "be at least 1 (or -1 for no end)")
    if options.get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches 0 leaves nothing to train on; raise it or leave it out")
    for name, least in _LEAST.items():
        require(name, partial(le, least), f"be at least {least}")
    require("num_sanity_val_steps", lambda steps: steps >= -1, "be at least 0 (or -1 for all)")
    if options.get("val_check_interval") == 0:
        raise UserError(
            "trainer.val_check_interval must be above 0: a share of an epoch, or a number of batches"
        )


@contextmanager
def refusals_of_lightning(options: Mapping[str, Any]) -> Iterator[None]:
    """What Lightning's trainer refuses within the block, in one sentence that begins with the option.

    Args:
        options: that it is given.

    Raises:
        UserError: in place of Lightning's own exceptions.
    """
    try:
        yield
    except UserError:
        raise
    except RuntimeError as error:
        # of several that would keep their state under one name
        if (found := re.search(r"more than one stateful callback of type `(\w+)`", str(error))) is None:
            raise
        raise UserError(
            f"trainer.callbacks {found[1]}: there is one with the same options already: give this one "
            "others, or leave it out"
        ) from error
    except (ImportError, MisconfigurationException, TypeError, ValueError) as error:
        if "unexpected keyword argument" in str(error):
            raise
        said = " ".join(str(error).split())
        given = {name: value for name, value in options.items() if value is not None and value != "auto"}
        if (package := missing_package(error)) is not None:
            machine = [f"trainer.{name} {value}" for name, value in given.items() if name in _MACHINE]
            raise UserError(f"{' with '.join(machine)} {needs(package)}") from error
        named = [name for name in given if re.search(rf"\b{name}\b", said)]
        named += [name for name, value in given.items() if isinstance(value, str) and value in said]
        start = f"trainer.{named[0]} {given[named[0]]}: " if named else "trainer: "
        way_out = "; auto takes what there is" if named[:1] == ["accelerator"] else ""
        raise UserError(f"{start}{said.rstrip('.!')}{way_out}") from error


def given_callbacks(callbacks: Iterable[Callback] | Callback | None) -> list[Callback]:
    """The callbacks that a trainer is given: one, several, or none.

    Raises:
        UserError: for what is no callback, as the name of one.
    """
    if isinstance(callbacks, Iterable) and not isinstance(callbacks, str):
        given = list(callbacks)
    else:
        given = [] if callbacks is None else [callbacks]
    for one in given:
        if isinstance(one, type) or not hasattr(one, "on_fit_start"):  # as those of pytorch_lightning have
            way_out = "give callbacks themselves, as [EarlyStopping('val/loss')]"
            raise UserError(f"trainer.callbacks: {one!r} is none; {way_out}")
    return given


def check_time(trainer: Trainer) -> None:
    """Refuse a training that has no time.

    Raises:
        UserError: naming the option.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            raise UserError("trainer.max_time leaves no time to train: it is DD:HH:MM:SS, and more than 0")


# before a training ----------------------------------------------------------------------------------------


def require_classifier(command: str, model: object) -> None:
    """Stop where the model is none of this package's classifiers, or the class of one.

    Args:
        command: the trainer's method, for the message.
        model: what it was given.

    Raises:
        UserError: naming the way out.
    """
    if not isinstance(model, OpenSetClassifier):
        raise UserError(f"{command} takes a classifier, as MCDropoutClassifier(), got {model!r}")


def refuse_names(command: str, *given: object) -> None:
    """Stop where images are given by the name of a source, whose letters would be batches.

    Args:
        command: the trainer's method, for the message.
        given: as its loaders and datamodule.

    Raises:
        UserError: naming the way out.
    """
    for one in given:
        if isinstance(one, (str, os.PathLike)):
            require_images(command, one)


def require_images(command: str, datamodule: object) -> None:
    """Stop where the images are given as anything but this package's datamodule.

    Args:
        command: the trainer's method, for the message.
        datamodule: what it was given.

    Raises:
        UserError: naming the way out.
    """
    if not isinstance(datamodule, OpenSetDataModule):
        raise UserError(
            f"{command} takes images as an OpenSetDataModule, as OpenSetDataModule(known='folder:MINE'), got "
            f"{datamodule!r}"
        )


def require_best(trainer: Trainer) -> None:
    """Stop where no best checkpoint would be written, or where it would not be tested.

    Raises:
        UserError: naming the option.
    """
    if trainer.limit_val_batches == 0:
        raise UserError("the best checkpoint is chosen on validation images: raise trainer.limit_val_batches")
    if trainer.limit_test_batches == 0:
        raise UserError("trainer.limit_test_batches 0 leaves nothing to test: raise it, or use fit")
    kept = any(getattr(one, "monitor", None) for one in trainer.checkpoint_callbacks)
    if not kept or getattr(trainer, "fast_dev_run", False):
        raise UserError(
            "run tests the best checkpoint, and none would be written: leave trainer.logger, fast_dev_run "
            "and enable_checkpointing as they are, or use fit"
        )


def check_monitors(trainer: Trainer, model: LightningModule) -> None:
    """Refuse callbacks and a schedule that watch what is not logged, where all that logs is known.

    Raises:
        UserError: naming the callback, what it watches, and what there is.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if (option := _FINDERS.get(type(callback).__name__)) is not None:
            raise UserError(
                f"{type(callback).__name__} cannot go back to the beginning of a training here: set "
                f"{option}, or let osr search try some"
            )
        if type(callback) in _BASES:
            raise UserError(f"{type(callback).__name__} does nothing itself: name a subclass of it")
        if isinstance(callback, BackboneFinetuning) and not hasattr(model, "backbone"):
            raise UserError(
                f"{type(callback).__name__} freezes the part of a model that is called backbone, and "
                f"{type(model).__name__} has none: leave it out, or subclass BaseFinetuning"
            )
    if not isinstance(model, OpenSetClassifier) or type(model) not in CLASSIFIERS.values():
        return
    if not all(type(callback).__module__.startswith(_OWN) for callback in callbacks):
        return  # one of the user's may log more
    fitted = model.hparams["score"] in DETECTORS  # whose threshold is chosen after the training
    names = [*_LOGGED, *(() if fitted else ("val/threshold",))]
    watching = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in callbacks]
    schedule = None if model.own_optimizer is None else model.own_optimizer.scheduler
    if schedule is not None and (monitor := schedule["init_args"].get("monitor")) is not None:
        watching.append((str(schedule["class_path"]).rpartition(".")[2], monitor))
    for name, monitor in watching:
        if isinstance(monitor, str) and monitor not in (*names, *_LIGHTNINGS):
            there = did_you_mean(monitor.replace("_", "/"), names, f"there are {', '.join(names)}")
            raise UserError(f"{name} watches {monitor!r}, which is not logged; {there}")


class FitChecks(Callback):
    """Refuses a training that would end before its first validation, once its number of batches is known.

    Attributes:
        best_needed: whether the best checkpoint is to be tested.
    """

    def __init__(self) -> None:
        self.best_needed = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the batches of an epoch; a training that goes on has been looked at before.

        Raises:
            UserError: naming the options.
        """
        if trainer.ckpt_path is not None or getattr(trainer, "reload_dataloaders_every_n_epochs", False):
            return
        interval = trainer.val_check_interval
        try:
            trainer.fit_loop.setup_data()
        except ValueError as error:
            if "val_check_interval" not in str(error):
                raise
            raise UserError(
                f"trainer.val_check_interval {interval} is more than the {trainer.num_training_batches} "
                "batches of an epoch: lower it, or count them over epochs with "
                "trainer.check_val_every_n_epoch null"
            ) from error
        share, datamodule = trainer.limit_val_batches, datamodule_of(trainer)
        if isinstance(share, float) and 0 < share < 1 and datamodule is not None:
            batches = len(datamodule.val_dataloader())
            if share * batches < 1:
                name = "overfit_batches" if getattr(trainer, "overfit_batches", 0) else "limit_val_batches"
                raise UserError(
                    f"trainer.{name} {share:g} of {batches:,} validation batches is none: raise it, or lower "
                    "data.eval_batch_size"
                )
        first, end = first_validation(trainer), last_batch(trainer)
        if self.best_needed and first is not None and end < first:
            raise UserError(
                "run tests the best checkpoint, which a validation chooses: the first would follow batch "
                f"{first:,}, and the training ends with batch {end:,}; raise trainer.max_epochs or "
                "max_steps, or lower check_val_every_n_epoch or val_check_interval"
            )


def first_validation(trainer: Trainer) -> int | None:
    """After which batch, counted from 1 over epochs, the first validation is; None where time decides."""
    within = trainer.val_check_batch
    if within is None:
        return None
    epochs = trainer.check_val_every_n_epoch
    whole = 0 if epochs is None else (epochs - 1) * trainer.num_training_batches
    return int(whole + min(within, trainer.num_training_batches if epochs is not None else within))


def last_batch(trainer: Trainer) -> float:
    """The last batch of the training, counted from 1 over epochs; inf where there is no end."""
    batches = trainer.num_training_batches
    ends = [math.inf]
    if trainer.max_epochs not in (None, -1):
        ends.append(trainer.max_epochs * batches)
    if trainer.max_steps != -1 and not math.isinf(batches):
        together = trainer.accumulate_grad_batches
        steps = math.ceil(batches / together)  # of an epoch, whose last one may be of fewer batches
        epochs, rest = divmod(trainer.max_steps, steps)
        ends.append(epochs * batches + rest * together)
    return min(ends)
