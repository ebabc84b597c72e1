"""Checkpoints of earlier layouts, and class paths of 0.1, brought to today's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from osr_lightning.errors import UserError
from osr_lightning.models.networks import NETWORKS

VERSION = 3
_WITHOUT_STYLE = 2  # its backbones gave features alone
_MNIST = [
    f"{digit} - {name}"
    for digit, name in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    )
]
_NAMES = {
    "mnist": _MNIST,
    "qmnist": _MNIST,
    "mnist_sample": list("0123456789"),
}

# where 0.1 had a class that a saved config may name -> where it is
CLASS_PATHS = {
    "osr_lightning.evaluation.evaluator.Evaluator": "osr_lightning.training.callbacks.evaluator.Evaluator",
    **{
        f"osr_lightning.models.classifiers.{name}": f"osr_lightning.training.module.{name}"
        for name in ("BaselineClassifier", "MCDropoutClassifier")
    },
}


def new_class_path(path: str) -> str:
    """Today's path of a class of this package that 0.1 had elsewhere; others as they are."""
    return CLASS_PATHS.get(path, path)


def migrate(checkpoint: object) -> dict[str, Any]:
    """Bring a checkpoint to today's layout.

    Args:
        checkpoint: as it was read.

    Returns:
        It, with ``recogniser`` and ``state_dict``.

    Raises:
        UserError: where it is of another project, or of a version that cannot be brought here.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError("this is no checkpoint of osr_lightning; train one with osr run")
    for name in ("hyper_parameters", "datamodule_hyper_parameters"):
        if not isinstance(checkpoint.get(name) or {}, Mapping):
            raise UserError(f"the checkpoint's {name} are no options; it is damaged")
    found = checkpoint.get("recogniser")
    if found is None:
        if "classifier" not in checkpoint or "calibrations" not in checkpoint:
            raise UserError("this is no checkpoint of osr_lightning; train one with osr run")
        return _from_0_1(checkpoint)
    if not isinstance(found, Mapping) or not isinstance(found.get("recipe"), Mapping):
        raise UserError("the checkpoint has no recipe; it is damaged")
    if found.get("version") == _WITHOUT_STYLE:
        return _from_2(checkpoint)
    if found.get("version") != VERSION:
        raise UserError(
            f"the checkpoint is of version {found.get('version')!r}, this package reads {VERSION}; "
            "install a newer osr_lightning"
        )
    return checkpoint


def _from_2(checkpoint: dict[str, Any]) -> dict[str, Any]:
    kept = checkpoint["recogniser"]
    options = checkpoint.get("hyper_parameters") or {}
    return {
        **checkpoint,
        "hyper_parameters": _without_style(options),
        "recogniser": {**kept, "version": VERSION, "recipe": _without_style(kept["recipe"])},
    }


def _without_style(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose backbones, and those of its members, give no style."""
    changed = dict(recipe)
    network, members = recipe.get("network"), recipe.get("members")
    path = network.get("class_path") if isinstance(network, Mapping) else network
    if isinstance(path, str) and path.rpartition(".")[2] in ("Backbone", "Wrapped"):
        given = network.get("init_args") if isinstance(network, Mapping) else None
        if isinstance(given, (Mapping, type(None))):
            changed["network"] = {"class_path": path, "init_args": {"style": False, **(given or {})}}
    if isinstance(members, list):
        changed["members"] = [_without_style(one) if isinstance(one, Mapping) else one for one in members]
    return changed


def _from_0_1(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """0.1 kept the classifier's and the datamodule's arguments, and no class names."""
    model = dict(checkpoint.get("hyper_parameters") or {})
    data = dict(checkpoint.get("datamodule_hyper_parameters") or {})
    kind = {"BaselineClassifier": "single", "MCDropoutClassifier": "mc_dropout"}.get(checkpoint["classifier"])
    if kind is None:
        raise UserError(f"the checkpoint holds a {checkpoint['classifier']}, which this version lacks")
    default = "MCDropoutCNN" if kind == "mc_dropout" else "BaselineCNN"
    network = model.get("network") or {"class_path": default, "init_args": {}}
    name = network["class_path"].rpartition(".")[2]
    if name not in NETWORKS:
        raise UserError("a checkpoint of 0.1 with a network of one's own cannot be brought here; train again")
    arguments = dict(network.get("init_args") or {})
    classes = int(arguments.pop("num_classes", model.get("num_classes", 10)))
    channels, size = (
        int(arguments.pop(key, data.get(other, default)))
        for key, other, default in (("in_channels", "channels", 1), ("image_size", "image_size", 28))
    )
    names = _NAMES.get(str(data.get("known")), [])
    recipe = {
        "sampler": kind,
        "network": {"class_path": name, "init_args": arguments},
        "score": model.get("score", "generalized_entropy"),
        "detectors": list(model.get("detectors") or []),
        **{key: model[key] for key in ("num_samples", "masks", "mask_seed") if key in model},
    }
    spec = {
        # 0.1 wrote no names; where the known set's own are not certain, the label is the name
        "classes": names if len(names) == classes else [str(label) for label in range(classes)],
        "channels": channels,
        "image_size": size,
        "mean": [float(data.get("mean", 0.1307))] * channels,
        "std": [float(data.get("std", 0.3081))] * channels,
    }
    state = {
        f"recogniser.{'sampler.' if name.startswith('network.') else ''}{name}": value
        for name, value in checkpoint["state_dict"].items()
        if name != "threshold"
    }
    state["recogniser.threshold._extra_state"] = {"records": checkpoint["calibrations"]}
    for key in ("num_classes", "network", "_class_path", "_instantiator"):
        model.pop(key, None)
    for key in ("mean", "std"):
        data[key] = spec[key]
    return {
        **checkpoint,
        "migrated": "0.1",
        "state_dict": state,
        "hyper_parameters": model | {"network": recipe["network"]},
        "datamodule_hyper_parameters": {k: v for k, v in data.items() if not k.startswith("_")},
        "recogniser": {"version": VERSION, "recipe": recipe, "facts": spec},
    }
