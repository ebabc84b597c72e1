"""The space of a search: from a YAML file to what Optuna draws, and from a draw to options of ``osr run``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from osr_lightning.errors import UserError
from osr_lightning.yaml_files import check_yaml

Space: TypeAlias = dict[str, BaseDistribution]
Values: TypeAlias = dict[str, Any]

_LUCK = "a search over seeds finds luck"
_IMAGES = "all trials are to be judged on the same images"
_THRESHOLD = "the objective is the ranking, which no threshold changes"
_OURS = "the search sets it itself"
# of data., all others change which images are trained on or judged
_FREE_DATA = ("image_size", "channels", "mean", "std", "batch_size")
_REFUSED = {
    "seed_everything": _LUCK,
    "ckpt_path": "a trial trains from the beginning",
    "evaluation": "a trial is not tested",
    "trainer.devices": "a trial trains in one process",
    "trainer.num_nodes": "a trial trains in one process",
    "trainer.strategy": "a trial trains in one process",
    **{f"trainer.{name}": _OURS for name in ("experiment", "version", "default_root_dir", "logger")},
    **{f"trainer.{name}": _OURS for name in ("callbacks", "enable_checkpointing", "checkpoint_minutes")},
    **{f"model.{name}": _THRESHOLD for name in ("calibration", "alpha", "threshold", "costs")},
    "model.unknown_prior": _THRESHOLD,
}


def read_space(path: Path) -> Space:
    """Read a space: option of ``osr run`` -> ``{low, high[, log][, step]}`` or ``{choices}``.

    Whole numbers for all of low, high and step draw whole numbers.

    Raises:
        UserError: naming the option and what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f"there is no space file {path}; see docs/search_space.yaml for one")
    check_yaml(path)
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} must name options, as in model.learning_rate: {{low: 0.001, high: 0.01}}")
    return {str(key): _distribution(f"{path}: {key}", str(key), value) for key, value in found.items()}


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    """A draw as options of the command line."""
    return [
        f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    ]


def corners(space: Space) -> list[Values]:
    """Draws that between them hold every choice and both ends of every range."""
    ends: dict[str, list[Any]] = {}
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            ends[name] = list(distribution.choices)
        else:
            assert isinstance(distribution, (FloatDistribution, IntDistribution))
            ends[name] = [distribution.low, distribution.high]
    rounds = max(map(len, ends.values()))
    return [{name: values[i % len(values)] for name, values in ends.items()} for i in range(rounds)]


def described(space: Space) -> dict[str, str]:
    """Plain text by which two spaces are compared."""
    return {name: distribution_to_json(distribution) for name, distribution in space.items()}


def _distribution(where: str, key: str, value: object) -> BaseDistribution:
    _check_key(where, key)
    keys = {*value} if isinstance(value, dict) else set()
    if not isinstance(value, dict) or not (
        keys == {"choices"} or {"low", "high"} <= keys - {"choices"} == keys
    ):
        raise UserError(f"{where} needs low and high, or choices alone, not {value!r}")
    if strange := keys - {"choices", "low", "high", "log", "step"}:
        raise UserError(
            f"{where} has {min(map(str, strange))}; there are low, high, log and step, or choices"
        )
    if "choices" in value:
        return _choices(where, value["choices"])
    low, high, step = (_number(f"{where}.{name}", value.get(name)) for name in ("low", "high", "step"))
    log = value.get("log", False)
    assert low is not None
    assert high is not None
    if not isinstance(log, bool):
        raise UserError(f"{where}.log must be true or false, not {log!r}")
    if not low < high:
        raise UserError(f"{where} is empty: low {low} is not below high {high}")
    if log and low <= 0:
        raise UserError(f"{where} has log: true, which needs a low above 0, not {low}")
    if log and step is not None:
        raise UserError(f"{where} has log and step; only one of them is possible")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{where}.step must lie between 0 and high - low, got {step}")
    if step is not None:  # the last value that is reached; in decimals, as 0.1 + 0.2 is not 0.3
        first, last, each = (Decimal(str(number)) for number in (low, high, step))
        high = type(high)(first + (last - first) // each * each)
    if isinstance(low, int) and isinstance(high, int) and isinstance(step, (int, type(None))):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(float(low), float(high), log=log, step=None if step is None else float(step))


def _check_key(where: str, key: str) -> None:
    root, _, rest = key.partition(".")
    for name, reason in _REFUSED.items():
        if key == name or key.startswith(f"{name}."):
            raise UserError(f"{where} cannot be searched: {reason}")
    if root == "data" and rest not in _FREE_DATA:
        raise UserError(f"{where} cannot be searched: {_IMAGES}; of data. there are {', '.join(_FREE_DATA)}")
    if root not in ("model", "trainer", "data", "optimizer", "lr_scheduler"):
        raise UserError(f"{where} is no option of osr run that can be searched; name one as model.dropout")


def _choices(where: str, choices: object) -> CategoricalDistribution:
    if not isinstance(choices, list) or len({repr(choice) for choice in choices}) < max(2, len(choices)):
        raise UserError(f"{where}.choices must list at least two different values, not {choices!r}")
    # storages keep plain values alone; the parser reads a list from its text
    plain = (bool, int, float, str, type(None))
    return CategoricalDistribution(
        [choice if isinstance(choice, plain) else json.dumps(choice) for choice in choices]
    )


def _number(where: str, value: object) -> int | float | None:
    if value is None and where.endswith(".step"):
        return None
    try:  # YAML takes 1e-3 for text
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
        raise UserError(f"{where} must be a number, not {value!r}")
    return number
