"""Which runs a study has: configs x class splits x seeds, and the part of them that one machine takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import yaml

from osr_lightning.arguments import value_of
from osr_lightning.data.class_splits import known_classes
from osr_lightning.errors import UserError
from osr_lightning.files import folder_name


class Run(NamedTuple):
    """One run of a study.

    Attributes:
        config: its YAML file.
        split: e.g. ``arpl1``; empty without splits.
        seed: of the training.
        folder: its run folder.
        arguments: of ``osr run``.
    """

    config: Path
    split: str
    seed: int
    folder: Path
    arguments: list[str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name


def plan(
    configs: Sequence[Path],
    seeds: Sequence[int],
    splits: str | None,
    name: str | None,
    further: Sequence[str],
) -> list[Run]:
    """The runs of a study, in order.

    Args:
        configs: YAML files.
        seeds: of the trainings.
        splits: name of class splits.
        name: of the study.
        further: options of ``osr run``.

    Raises:
        UserError: for a config that is missing, or two of one name.
    """
    if missing := [path for path in configs if not path.is_file()]:
        raise UserError(f"there is no config {missing[0]}; name a YAML file as for osr run --config")
    stems = [path.stem for path in configs]
    if len({*stems}) < len(stems):
        raise UserError("two configs have the same file name, and so would their runs; rename one of them")
    if value_of(further, "--trainer.devices") not in (None, "1"):
        raise UserError("a study trains in one process: leave trainer.devices, and spread runs with --shard")
    name = name or "-".join([*stems, *([splits] if splits else [])])
    runs_of = Path(value_of(further, "--trainer.default_root_dir") or ".", "lightning_logs")
    root = runs_of / folder_name("--name", name)
    runs = []
    parts = [(config, *part) for config in configs for part in _classes(config, splits, further)]
    for (config, split, classes), seed in product(parts, seeds):
        run = "-".join([config.stem, *([split] if split else []), f"seed{seed}"])
        known = [] if classes is None else [f"--data.known_classes={list(classes)}"]
        arguments = [
            f"--config={config}",
            "--trainer.devices=1",
            *further,
            *known,
            f"--seed_everything={seed}",
            f"--trainer.experiment={name}",
            f"--trainer.version={run}",
        ]
        runs.append(Run(config, split, seed, root / run, arguments))
    return runs


def _classes(
    config: Path, splits: str | None, further: Sequence[str]
) -> list[tuple[str, tuple[int, ...] | None]]:
    if splits is None:
        return [("", None)]
    try:
        named = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["known"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        named = "mnist"
    source = value_of(further, "--data.known") or str(named)
    lists = known_classes(splits, source)
    return [(f"{splits}{number}", classes) for number, classes in enumerate(lists, start=1)]


def shard(runs: Sequence[Run], part: str | None) -> list[Run]:
    """The runs of one part ``I/N``, every N-th.

    Raises:
        UserError: for what is no part.
    """
    if part is None:
        return list(runs)
    index, _, count = part.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {part} is no part: write I/N with I from 1 to N, as in 2/8")
    return list(runs[int(index) - 1 :: int(count)])
