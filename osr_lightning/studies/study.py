"""``osr study``: configs x seeds x class splits in one process, and one table of what they reached."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import yaml

from osr_lightning.arguments import value_of
from osr_lightning.data.class_splits import NAMES, known_classes
from osr_lightning.errors import UserError
from osr_lightning.files import folder_name
from osr_lightning.studies.arguments import options_of, parse
from osr_lightning.studies.tables import Finished, write_tables
from osr_lightning.writing import write_text

_LAST = "report.html"  # the last file that a run writes
_KEPT = "arguments.json"  # in a run's folder: what it was started with


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


def parser() -> argparse.ArgumentParser:
    """The study's own options; all others are those of ``osr run``."""
    options = argparse.ArgumentParser(
        "osr study",
        usage="osr study CONFIG [CONFIG ...] [--seeds SEED ...] [--splits arpl|neal] [--shard I/N] "
        "[--ensemble] [--name NAME] [options of osr run]",
        description="Every CONFIG (YAML of osr run; the first words) with every seed (and class split), "
        "each run in a folder of its own below lightning_logs/NAME, and one table of means and standard "
        "deviations, study.csv and study.html. Started again, it skips finished runs and goes on with one "
        "that was stopped. All further options are those of osr run, and hold for every run.",
        allow_abbrev=False,
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="0 if not given")
    options.add_argument(
        "--splits",
        choices=NAMES,
        help="six known classes and four unknown, five times: of Chen et al. (arpl) or Neal et al. (neal)",
    )
    options.add_argument(
        "--shard", metavar="I/N", help="the I-th of N parts of the runs, for several machines or jobs"
    )
    options.add_argument(
        "--ensemble",
        action="store_true",
        help="join the seeds of each config (and split), once all are there, and test that as well",
    )
    options.add_argument("--name", help="of the study; made of the configs' names if not given")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run a study, or a part of it.

    Args:
        arguments: of the command line, after ``study``.

    Raises:
        UserError: for a mistake in them, or runs that were made with other options.
    """
    configs, options, further = parse(parser(), arguments, "the configs first, as in osr study CONFIG ...")
    runs = plan([Path(config) for config in configs], options.seeds, options.splits, options.name, further)
    mine = shard(runs, options.shard)
    for run in mine:
        _refuse_other(run)
    from osr_lightning.data.sources import shared_sets

    with shared_sets():
        for number, run in enumerate(mine, start=1):
            state = "finished before" if _is_finished(run) else str(run.folder)
            print(f"run {number} of {len(mine)}: {run.name}, {state}", flush=True)
            if not _is_finished(run):
                start(run)
            table(runs)
        joined = ensembles(runs, further) if options.ensemble else []
    print("\n".join(str(path) for path in table(runs, joined, say=True)))


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


def start(run: Run) -> None:
    """Train, calibrate and test; or go on with it, from its last checkpoint."""
    from osr_lightning.cli import OpenSetCLI

    last = run.folder / "checkpoints" / "last.ckpt"
    resumed = [f"--ckpt_path={last}"] if last.is_file() else []
    if not resumed and run.folder.exists():
        shutil.rmtree(run.folder)  # it was stopped before its first checkpoint
    write_text(run.folder / _KEPT, json.dumps(_description(run), indent=2) + "\n")
    OpenSetCLI(["run", *run.arguments, *resumed])


def ensembles(runs: Sequence[Run], further: Sequence[str]) -> list[Finished]:
    """Join and test the seeds of each config and split, where all are finished.

    Args:
        runs: of the whole study.
        further: options of ``osr run``, of which those of the trainer, the data and the evaluation count.
    """
    from osr_lightning.cli import OpenSetCLI
    from osr_lightning.studies.ensemble import ensemble

    found = []
    for (config, split), group in groupby(runs, key=lambda run: (run.config, run.split)):
        members = list(group)
        if not all(map(_is_finished, members)):
            continue
        first = members[0]
        name = "-".join([config.stem, *([split] if split else []), f"ensemble{len(members)}"])
        folder = first.folder.with_name(name)
        if not (folder / _LAST).is_file():
            place = [f"--trainer.experiment={folder.parent.name}", f"--trainer.version={name}"]
            options = [*options_of(further, ("--trainer.", "--data.", "--evaluation.")), *place]
            path = ensemble([run.folder / "checkpoints" / "best.ckpt" for run in members], options=options)
            OpenSetCLI(["test", f"--ckpt_path={path}", *options])
        found.append(Finished(f"{config.stem}, {len(members)} joined", split, first.seed, folder))
    return found


def table(runs: Sequence[Run], joined: Sequence[Finished] = (), *, say: bool = False) -> list[Path]:
    """Write the table of the runs that are finished, and of ensembles of them; see `write_tables`."""
    done = [Finished(run.config.stem, run.split, run.seed, run.folder) for run in runs if _is_finished(run)]
    return write_tables([*done, *joined], f"{len(done)} of {len(runs)} runs", runs[0].folder.parent, say=say)


def _is_finished(run: Run) -> bool:
    return (run.folder / _LAST).is_file()


def _description(run: Run) -> dict[str, object]:
    arguments = [a for a in run.arguments if not a.startswith("--config=")]
    return {"arguments": arguments, "config_sha256": _digest(run.config)}


def _digest(config: Path) -> str:
    """Of what a config says, whatever its comments and its layout."""
    content = config.read_bytes()
    with suppress(yaml.YAMLError):  # it gets its sentence once it is read
        tokens = [(t.id, getattr(t, "value", None), getattr(t, "plain", None)) for t in yaml.scan(content)]
        content = repr(tokens).encode()
    return hashlib.sha256(content).hexdigest()


def _refuse_other(run: Run) -> None:
    try:
        before = json.loads((run.folder / _KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if run.folder.exists():
            raise UserError(f"{run.folder} is no run of this study; give the study another --name") from None
        return
    except (OSError, ValueError):
        before = None
    if before != _description(run):
        raise UserError(
            f"{run.folder} was made with other options or another {run.config.name}; give the study another "
            "--name, or remove that folder"
        )
