"""What a checkpoint says of the run that made it, as settings of the command line: checked, plain values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from osr_lightning.cli.checkpoint_path import not_calibrated
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.models.sampling import NOT_TRAINED
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.training.module import CLASSIFIERS, EnsembleClassifier

# options that one way to choose the threshold takes alone
_OF_METHOD = {"threshold": "fixed", "costs": "min_cost", "few_share": "class_quantile"}


def checkpoint_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The model, data, seed and experiment that a checkpoint was trained with, as a config.

    Its network is left out: that is built from the recipe, not by the parser, which would import whatever a
    stranger's checkpoint names. No other option names a class.

    Raises:
        UserError: where the checkpoint is of no classifier, or holds values that are not plain.
    """
    sampler = checkpoint["recogniser"]["recipe"].get("sampler")
    kind = next((kind for kind in CLASSIFIERS.values() if kind.sampler == sampler), None)
    if kind is None:
        raise UserError("the checkpoint holds no classifier that this command knows; a newer version may")
    model = kind.options_of(checkpoint)
    parameters = inspect.signature(OpenSetDataModule).parameters
    data = {
        name: value
        for name, value in (checkpoint.get("datamodule_hyper_parameters") or {}).items()
        if name in parameters
    }
    settings: dict[str, Any] = {
        "model": {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": model},
        "data": data,
    }
    experiment, seed = checkpoint.get("experiment"), checkpoint.get("seed")
    if isinstance(experiment, str) and Path(experiment).name == experiment and experiment not in ("", ".."):
        settings["trainer"] = {"experiment": experiment}
    if isinstance(seed, int):
        settings["seed_everything"] = seed
    if not _is_plain(settings):
        raise UserError("the checkpoint's settings are not plain values; it is damaged")
    return settings


def refuse_ensemble(checkpoint: dict[str, Any]) -> None:
    """Stop where a training is to go on with an ensemble.

    Raises:
        UserError: saying what to train.
    """
    if checkpoint["recogniser"]["recipe"].get("sampler") == EnsembleClassifier.sampler:
        raise UserError(NOT_TRAINED)


def refuse_idle(checkpoint: dict[str, Any], options: Namespace, command: str) -> None:
    """Stop where an option chooses a threshold and the command takes the checkpoint's.

    Raises:
        UserError: naming the option and the command for it.
    """
    if command == "calibrate" or options.calibration == "fixed":
        return
    trained = checkpoint.get("hyper_parameters") or {}
    for name in ("alpha", "calibration", "unknown_prior"):
        if name in trained and trained[name] != options[name]:
            raise UserError(
                f"{command} decides by the checkpoint's threshold, which model.{name} {options[name]} would "
                f"not change: choose another one with osr calibrate --model.{name} {options[name]}"
            )


def refuse_unused(words: Sequence[str], options: Mapping[str, Any]) -> None:
    """Stop where an option belongs to another way to choose the threshold, and would decide nothing.

    Args:
        words: of the command line; files may hold more than a command needs.
        options: of the classifier.

    Raises:
        UserError: naming the way.
    """
    for name, method in _OF_METHOD.items():
        given = re.compile(rf"--model\.(init_args\.)?{name}\b")
        if (
            any(map(given.match, words))
            and options.get(name) is not False
            and options.get("calibration") != method
        ):
            raise UserError(
                f"model.{name} is for model.calibration {method} alone, and would change nothing: add "
                f"--model.calibration {method}, or leave model.{name} out"
            )


def refuse_unfitted(checkpoint: dict[str, Any], score: str, command: str, path: str) -> None:
    """Stop where the command decides by a score that the checkpoint has no fit of, as that of an epoch.

    Raises:
        UserError: with the command that fits it.
    """
    fit = f"{checkpoints.PREFIX}detectors.{score}."
    if command not in ("test", "predict") or score not in DETECTORS:
        return
    if any(isinstance(name, str) and name.startswith(fit) for name in checkpoint["state_dict"]):
        return
    own = checkpoint["recogniser"]["recipe"].get("score") == score
    raise UserError(not_calibrated(Path(path), score, f"osr {command} --ckpt_path", own=own))


def same_split(checkpoint: dict[str, Any], data: Namespace, command: str) -> None:
    """Refuse a split under which images of the training would calibrate or be tested.

    Raises:
        UserError: where the known images are those of the training, but divided otherwise.
    """
    trained = checkpoint.get("datamodule_hyper_parameters") or {}
    if command == "predict" or trained.get("known") != data.known:
        return
    if checkpoint.get("migrated") and (
        data.known.startswith(("folder:", "npz:")) or (data.known == "mnist_sample" and trained.get("seed"))
    ):
        raise UserError(
            f"the checkpoint is of 0.1, which divided {data.known} in another way: images of its training "
            "would be tested, so train again; osr predict and load() still take it"
        )
    for name in ("seed", "test_seed", "val_fraction"):
        if name in trained and trained[name] != data[name]:
            raise UserError(
                f"the checkpoint was trained with data.{name} {trained[name]}; with {data[name]} some of its "
                f"training images would be held out, so leave data.{name} as it was"
            )


def refuse_forgotten(checkpoint: dict[str, Any], data: Namespace, config: Path) -> None:
    """Stop where a training that goes on is given no images, and its own are not those of the defaults.

    Args:
        checkpoint: to go on from.
        data: the datamodule's options, none of which was given.
        config: of the checkpoint's run, which may not be there.

    Raises:
        UserError: naming the run's config.
    """
    trained = (checkpoint.get("datamodule_hyper_parameters") or {}).get("known")
    if isinstance(trained, str) and trained != data.known:
        own = f"with --config {config}" if config.is_file() else "with the --config of its run"
        raise UserError(
            f"the checkpoint was trained on {trained}, and nothing here says so: go on {own}, or name the "
            "images with --data.known"
        )


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
