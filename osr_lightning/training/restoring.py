"""From a checkpoint to a classifier with its weights and thresholds."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any, TypeVar

from osr_lightning import checkpoint as checkpoints
from osr_lightning.data.audit import read_seen
from osr_lightning.errors import UserError
from osr_lightning.facts import Facts, same_classes
from osr_lightning.migrate import migrate
from osr_lightning.weights import mask_names, take_weights

if TYPE_CHECKING:
    from osr_lightning.training.module import RecogniserModule

    Classifier = TypeVar("Classifier", bound=RecogniserModule)


_CLASSES = {
    "single": "BaselineClassifier",
    "mc_dropout": "MCDropoutClassifier",
    "ensemble": "EnsembleClassifier",
}


def restore(model: RecogniserModule, checkpoint: dict[str, Any], *, trust: bool) -> None:
    """Build the model for a checkpoint and take its weights; the checkpoint's become the model's, in place.

    Raises:
        UserError: for a checkpoint of another class, of other sizes or classes, or damaged.
    """
    checkpoint |= migrate(checkpoint)
    kept = checkpoint["recogniser"]
    recipe, facts = kept["recipe"], Facts.from_dict(kept["facts"])
    if recipe.get("sampler") != model.sampler:
        saved = _CLASSES.get(str(recipe.get("sampler")), "recogniser of another kind")
        raise UserError(
            f"the checkpoint holds a {saved}, but the model is a {type(model).__name__}; "
            "pass the matching --model or leave --config and --model out"
        )
    if model.recogniser is None:
        model.build(facts, recipe, trust=trust)
    same_classes(facts.classes, model.trained.facts.classes, "the model")
    model.images_seen = read_seen(checkpoint.get("images"))
    weights = {
        name.removeprefix(checkpoints.PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(checkpoints.PREFIX)
    }
    if recipe.get("mask_seed") != model.sampler_options().get("mask_seed"):  # others were asked for
        masks = mask_names(model.trained)
        weights = {name: value for name, value in weights.items() if name not in masks}
    take_weights(model.trained, weights)
    checkpoint["state_dict"] = {checkpoints.PREFIX + name: value for name, value in weights.items()}


def load(
    kind: type[Classifier], path: str | os.PathLike[str], trust: bool, options: dict[str, Any]
) -> Classifier:
    """A classifier of that kind from a checkpoint, ``options`` going before its own."""
    checkpoint = checkpoints.read(path)
    model = kind(**arguments(checkpoint, kind) | options)
    restore(model, checkpoint, trust=trust)
    return model


def arguments(checkpoint: dict[str, Any], kind: type[RecogniserModule]) -> dict[str, Any]:
    """The checkpoint's arguments of the class, its network left to the recipe."""
    parameters = {
        name
        for base in kind.__mro__
        if base.__module__.startswith(__package__ or "")
        for name in inspect.signature(base).parameters
    }
    kept = dict(checkpoint.get("hyper_parameters") or {})
    return {name: value for name, value in kept.items() if name in parameters and name != "network"}
