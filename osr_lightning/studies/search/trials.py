"""The options of a trial, and what the trials of one search have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from osr_lightning.studies.search.space import Space, as_arguments

# these go before what the user says
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
DEFAULTS = (*_QUIET, "--trainer.devices=1")
# what may differ from one process of a search to the next
_LOCAL = frozenset(
    (
        *("config", "evaluation", "data.unknown", "data.predict", "data.root"),
        *(f"data.{name}" for name in ("memory_limit", "num_workers", "eval_batch_size")),
        *(f"trainer.{name}" for name in ("default_root_dir", "experiment", "version", "logger")),
        *(f"trainer.{name}" for name in ("devices", "accelerator")),
        *(f"trainer.enable_{name}" for name in ("progress_bar", "model_summary")),
    )
)


def trial_arguments(arguments: Sequence[str], values: Mapping[str, Any], name: str, number: int) -> list[str]:
    """The options of a trial: it keeps no checkpoint, and its run folder is ``NAME/version_NUMBER``."""
    ours = [f"--trainer.experiment={name}", f"--trainer.version={number}"]
    ours.append("--trainer.enable_checkpointing=false")
    return [*DEFAULTS, *arguments, *as_arguments(values), *ours]


def settings(config: str, space: Space) -> dict[str, Any]:
    """The resolved config but for searched and local options: what trials that compare have in common."""
    flat = dict(_flat("", yaml.safe_load(config)))
    leave = {*_LOCAL, *space, *(name.replace(".", ".init_args.", 1) for name in space)}
    within = tuple(f"{name}." for name in leave)
    return {name: value for name, value in flat.items() if name not in leave and not name.startswith(within)}


def _flat(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value
