"""What is trained, and how, where the user does not say: decided from the known images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lightning.pytorch import Trainer

from osr_lightning.errors import UserError
from osr_lightning.facts import Facts
from osr_lightning.models import networks
from osr_lightning.models.factory import NetworkLike, network_recipe
from osr_lightning.training.optimizers import Schedule

STUDY = ("BaselineCNN", "MCDropoutCNN")
STUDY_EPOCHS = 15
_MANY = 1000  # training images per class that need no augmentation
_STEPS = 1500  # that a small set is trained for at least
_MOST_EPOCHS = 300


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        network: name of one of this package's; None where the user gave one.
        augment: name of an augmentation.
        learning_rate: of the optimizer, or the peak of one_cycle.
        weight_decay: of AdamW; 0 is Adam.
        label_smoothing: share of the label that is spread over all classes.
        schedule: of the learning rate.
        batch_size: images per step and process.
        epochs: passes over the training images.
    """

    network: str | None
    augment: str
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    schedule: Schedule
    batch_size: int
    epochs: int

    def with_given(self, given: dict[str, Any]) -> Plan:
        """The plan with what the user said in its place; None says nothing."""
        names = {field.name for field in fields(self)}
        return replace(self, **{k: v for k, v in given.items() if k in names and v is not None})


def plan(network: NetworkLike | None, sampler: str, facts: Facts, images: int) -> Plan:
    """A plan that suits the network and the known images.

    The study's networks are trained as the study did, and are the choice for many small grey images, which
    they are made for. All others get a one-cycle schedule with augmentation, small sets more epochs.

    Args:
        network: what the user gave; None to choose.
        sampler: name of the sampler.
        facts: of the known images.
        images: number of training images.
    """
    recipe = None if network is None else network_recipe(network)
    name = "" if recipe is None else str(recipe["class_path"]).removeprefix(f"{networks.__name__}.")
    many = images >= _MANY * facts.num_classes
    grey = facts.channels == 1
    small = grey and 16 <= facts.image_size <= 28
    if name in STUDY or (network is None and small and many):
        chosen = None if name else "MCDropoutCNN" if sampler == "mc_dropout" else "BaselineCNN"
        return Plan(chosen, "none", 0.01, 0.0, 0.0, "step", 128, STUDY_EPOCHS)
    augment = "photos" if not grey else "none" if many else "digits"
    epochs = min(_MOST_EPOCHS, max(30, math.ceil(_STEPS * 64 / max(1, images))))
    own = network is None or name == "ConvNet"
    rate, decay = (0.004, 0.02) if own else (0.001, 0.02)
    return Plan("ConvNet" if network is None else None, augment, rate, decay, 0.05, "one_cycle", 64, epochs)


def check_epochs(epochs: int | None) -> int:
    """The number of epochs that was given, or the study's until there is a plan.

    Raises:
        UserError: for what is no number of epochs.
    """
    if epochs is None:
        return STUDY_EPOCHS
    if epochs < -1 or epochs == 0:
        raise UserError(f"trainer.max_epochs must be at least 1 (or -1 for no end), got {epochs}")
    return epochs


def check_limits(checkpoint_minutes: float | None, options: Mapping[str, Any]) -> None:
    """Refuse what would end a training before it begins.

    Raises:
        UserError: naming the option.
    """
    if checkpoint_minutes is not None and not 0 < checkpoint_minutes < math.inf:
        raise UserError(f"trainer.checkpoint_minutes must be above 0, got {checkpoint_minutes}")
    steps = options.get("max_steps", -1)
    if steps < -1 or steps == 0:
        raise UserError(f"trainer.max_steps must be at least 1 (or -1 for no end), got {steps}")
    if options.get("limit_train_batches") == 0:
        raise UserError("trainer.limit_train_batches 0 leaves nothing to train on; raise it or leave it out")


def require_best(trainer: Trainer) -> None:
    """Stop where no best checkpoint would be written.

    Raises:
        UserError: naming the option.
    """
    if trainer.limit_val_batches == 0:
        raise UserError("the best checkpoint is chosen on validation images: raise trainer.limit_val_batches")
    if not any(getattr(one, "monitor", None) for one in trainer.checkpoint_callbacks):
        raise UserError(
            "run tests the best checkpoint, and none would be written: leave trainer.logger, fast_dev_run "
            "and enable_checkpointing as they are, or use fit"
        )
