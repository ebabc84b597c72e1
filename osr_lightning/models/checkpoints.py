"""What a classifier keeps in a checkpoint beside its weights, and what it asks of one it loads."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration, Costs, fixed_calibration

if TYPE_CHECKING:
    from osr_lightning.models.open_set import OpenSetClassifier


def make_plain(hyperparameters: MutableMapping[str, Any]) -> None:
    """Leave plain values, which ``torch.load`` reads with ``weights_only=True``.

    The command line saves a network as class path and arguments. One made in Python cannot be saved so;
    ``load_from_checkpoint`` then needs it as an argument.
    """
    for name, value in list(hyperparameters.items()):
        if isinstance(value, nn.Module):
            del hyperparameters[name]
        elif isinstance(value, Costs):
            hyperparameters[name] = asdict(value)


def write(model: OpenSetClassifier, checkpoint: dict[str, Any]) -> None:
    """Keep the class, the run and every score's calibration in ``checkpoint``."""
    checkpoint["classifier"] = type(model).__name__
    checkpoint["experiment"] = getattr(model.trainer, "experiment", "default")
    checkpoint["seed"] = int(os.environ.get("PL_GLOBAL_SEED", 0))
    checkpoint["calibrations"] = {name: asdict(record) for name, record in model.calibrations.items()}


def read(model: OpenSetClassifier, checkpoint: dict[str, Any]) -> None:
    """Check that ``checkpoint`` fits, and take the threshold of the score in use, unless it is a fixed one.

    Raises:
        UserError: for a checkpoint of another class, of other sizes, or without this score.
    """
    saved = checkpoint.get("classifier")
    if saved != type(model).__name__:
        raise UserError(
            f"the checkpoint holds a {saved or 'model of another project'}, but the model is a "
            f"{type(model).__name__}; pass the matching --model or leave --config and --model out"
        )
    state = checkpoint["state_dict"]
    for name in list(state):
        if name.startswith("detectors.") and name.split(".")[1] not in model.detectors:
            del state[name]
    for name, tensor in model.state_dict().items():
        if name.startswith("detectors."):
            continue  # they take whatever fit the checkpoint has, or none
        if name not in state or state[name].shape != tensor.shape:
            found = f"has shape {tuple(state[name].shape)}" if name in state else "is missing"
            raise UserError(
                f"{name} {found} in the checkpoint, but has shape {tuple(tensor.shape)} in the model; "
                "leave --config and --model out to build the checkpoint's own model"
            )
    score = model.score_name
    model.calibrations = {name: Calibration(**record) for name, record in checkpoint["calibrations"].items()}
    calibrating = getattr(getattr(model.trainer, "datamodule", None), "calibrating", False)
    if model.method == "fixed" or (calibrating and score not in model.calibrations):
        model.calibrations[score] = fixed_calibration(model.fixed)
    if score not in model.calibrations:
        raise UserError(
            f"the checkpoint has no threshold for the score {score}, only for "
            f"{', '.join(model.calibrations)}; run calibrate with model.score {score} first"
        )
    state["threshold"] = torch.tensor(model.calibrations[score].value, dtype=torch.float64)
