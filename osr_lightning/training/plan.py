"""What is trained, and how: a classifier's options checked, and what suits the images where none is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from osr_lightning.data.augment import names as augmentation_names
from osr_lightning.data.mix import MIXES
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError, check_range, did_you_mean
from osr_lightning.models import networks
from osr_lightning.models.backbones import Backbone
from osr_lightning.models.factory import NetworkLike, makes, network_recipe
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.training.losses import LOSSES
from osr_lightning.training.optimizers import Schedule

STUDY = ("BaselineCNN", "MCDropoutCNN")
STUDY_EPOCHS = 15
_MANY = 1000  # training images per class that need no augmentation
_STEPS = 1500  # that a small set is trained for at least
_MOST_EPOCHS = 300
_HEAD_EPOCHS, _HEAD_STEPS = 30, 1200  # of a backbone's last layer
_TUNING_EPOCHS, _TUNING_STEPS, _MOST_TUNING = 10, 500, 30  # of all of a backbone, the last one of epochs
_LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        network: name of one of this package's; None where the user gave one.
        augment: name of an augmentation.
        learning_rate: of the optimizer, or the peak of one_cycle and cosine.
        weight_decay: of AdamW, 0 is Adam; of a backbone's last layer, of half its squared weights in the
            loss, None until it is chosen by validation images.
        label_smoothing: share of the label that is spread over all classes.
        schedule: of the learning rate.
        batch_size: images per step and process.
        epochs: passes over the training images.
    """

    network: str | None
    augment: str
    learning_rate: float
    weight_decay: float | None
    label_smoothing: float
    schedule: Schedule
    batch_size: int
    epochs: int

    def with_given(self, given: Mapping[str, Any]) -> Plan:
        """The plan with what the user said in its place; None says nothing."""
        names = {field.name for field in fields(self)} - {"network"}
        return replace(self, **{k: v for k, v in given.items() if k in names and v is not None})


def plan_training(network: NetworkLike | None, sampler: str, spec: DataSpec, images: int) -> Plan:
    """A plan that suits the network and the known images.

    The study's networks are trained as the study did, and are the choice for many small grey images, which
    they are made for. The last layer of a backbone is trained for 1200 steps or more, all of it for 10 epochs
    or more at a lower rate. All others get a one-cycle schedule with augmentation, small sets more epochs.

    Args:
        network: what the user gave; None to choose.
        sampler: name of the sampler.
        spec: of the known images.
        images: number of training images.
    """
    recipe = None if network is None else network_recipe(network)
    name = "" if recipe is None else str(recipe["class_path"]).removeprefix(f"{networks.__name__}.")
    if recipe is not None and makes(recipe, Backbone) and recipe["init_args"].get("finetune"):
        epochs = min(_MOST_TUNING, max(_TUNING_EPOCHS, math.ceil(_TUNING_STEPS * 32 / max(1, images))))
        return Plan(None, "photos", 0.0003, 0.02, 0.0, "one_cycle", 32, epochs)
    if isinstance(network, Backbone) or (recipe is not None and makes(recipe, Backbone)):
        batch_size = min(_LARGEST_BATCH, max(8, math.ceil(images * _HEAD_EPOCHS / _HEAD_STEPS)))
        return Plan(None, "none", 0.001, None, 0.0, "one_cycle", batch_size, _HEAD_EPOCHS)
    many = images >= _MANY * spec.num_classes
    grey = spec.channels == 1
    small = grey and 16 <= spec.image_size <= 28
    if name in STUDY or (network is None and small and many):
        chosen = None if name else "MCDropoutCNN" if sampler == "mc_dropout" else "BaselineCNN"
        return Plan(chosen, "none", 0.01, 0.0, 0.0, "step", 128, STUDY_EPOCHS)
    augment = "photos" if not grey else "none" if many else "digits"
    epochs = min(_MOST_EPOCHS, max(30, math.ceil(_STEPS * 64 / max(1, images))))
    own = network is None or name == "ConvNet"
    rate, decay = (0.004, 0.02) if own else (0.001, 0.02)
    return Plan("ConvNet" if network is None else None, augment, rate, decay, 0.05, "one_cycle", 64, epochs)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a classifier that are out of range.

    Args:
        options: of `osr_lightning.training.module.OpenSetClassifier`, which explains them.

    Raises:
        UserError: naming the first that is.
    """
    score, calibration = options["score"], options["calibration"]
    choices = [("score", score, [*SCORES, *DETECTORS])]
    choices += [("detectors", name, list(DETECTORS)) for name in options["detectors"]]
    choices += [("loss", options["loss"], list(LOSSES)), ("mix", options["mix"], list(MIXES))]
    if options["augment"] is not None:
        choices.append(("augment", options["augment"], augmentation_names()))
    for option, name, names in choices:
        if name not in names:
            there = did_you_mean(name, names, f"there are {', '.join(names)}")
            raise UserError(f"model.{option}: there is no {name!r}; {there}")

    require = partial(check_range, "model.", options)
    for name in ("alpha", "unknown_prior", "dropout"):
        require(name, lambda value: 0 < value < 1, "lie between 0 and 1")
    require("learning_rate", lambda value: 0 < value < math.inf, "be above 0")
    require("weight_decay", lambda value: 0 <= value < math.inf, "be 0 or above")
    require("label_smoothing", lambda value: 0 <= value < 1, "lie in [0, 1)")
    require("loss_temperature", lambda value: 0 < value < math.inf, "be above 0")
    require("num_samples", lambda value: value >= 1, "be at least 1")
    require("threshold", math.isfinite, "be a finite number")
    if score == "msp":
        require("threshold", lambda value: 0 <= value <= 1, "lie in [0, 1] for the score msp")
    if calibration == "fixed" and options["threshold"] is None:
        raise UserError("model.calibration fixed needs model.threshold, in units of the score: give it")
    if calibration == "optuna" and score != "msp":
        raise UserError(
            f"model.calibration optuna searches a threshold of the score msp only, not of {score}"
        )
