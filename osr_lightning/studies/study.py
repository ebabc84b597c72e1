"""``osr study``: configs x seeds x class splits in one process, and one table of what they reached."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

import yaml

from osr_lightning.data.class_splits import NAMES
from osr_lightning.errors import UserError
from osr_lightning.studies.arguments import options_of, parse
from osr_lightning.studies.plan import Run, plan, shard
from osr_lightning.studies.tables import Finished, write_tables
from osr_lightning.writing import write_text

_LAST = "report.html"  # the last file that a run writes
_KEPT = "arguments.json"  # in a run's folder: what it was started with


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
