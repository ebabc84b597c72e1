"""``osr study``: configs x seeds x class splits in one process, and one table of what they reached."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osr_lightning.cli.arguments import (
    CommandParser,
    add_name,
    beginning_with,
    check_seed,
    names,
    split_words,
    value_of,
)
from osr_lightning.data.class_splits import NAMES
from osr_lightning.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The study's own options; all others are those of ``osr run``."""
    options = CommandParser(
        "osr study",
        usage="osr study CONFIG [CONFIG ...] [--seeds SEED ...] [--splits NAME] [--shard I/N] "
        "[--ensemble] [--name NAME] [options of osr run]",
        description="Every CONFIG (YAML of osr run; the first words) with every seed (and class split), "
        "each run in a folder of its own below lightning_logs/NAME, and one table of means and standard "
        "deviations, study.csv and study.html. Started again, it skips finished runs and goes on with one "
        "that was stopped. All further options are those of osr run, and hold for every run.",
    )
    options.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="SEED", help="0 if not given")
    options.add_argument(
        "--splits",
        choices=NAMES,
        help="published known and unknown classes: of Chen et al. (arpl, and CIFAR-10 against CIFAR-100) or "
        "Neal et al. (neal), the Semantic Shift Benchmark's (ssb), OpenOOD's near and far sets (openood)",
    )
    options.add_argument(
        "--shard", metavar="I/N", help="the I-th of N parts of the runs, for several machines or jobs"
    )
    options.add_argument(
        "--ensemble",
        action="store_true",
        help="join the seeds of each config (and split), once all are there, and test that as well",
    )
    add_name(options, "made of the configs' names")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run a study, or a part of it.

    Args:
        arguments: of the command line, after ``study``.

    Raises:
        UserError: for a mistake in them, or runs that were made with other options.
    """
    parser = build_parser()
    configs, options, further = split_words(
        parser, arguments, "the configs first, as in osr study CONFIG ..."
    )
    for seed in options.seeds:
        check_seed("--seeds", seed)
    if value_of(further, "--trainer.devices") not in (None, "1"):
        raise UserError("a study trains in one process: leave trainer.devices, and spread runs with --shard")
    from osr_lightning.cli.messages import read_options
    from osr_lightning.studies.study import plan_runs, run_study, shard

    runs = plan_runs(
        [Path(config) for config in configs],
        options.seeds,
        options.splits,
        options.name,
        further,
        root=Path(value_of(further, "--trainer.default_root_dir") or "."),
        known=value_of(further, "--data.known"),
    )
    mine = shard(runs, options.shard)
    read_options("run", further, names(parser))

    def train(arguments: list[str]) -> None:
        from osr_lightning.cli.lightning_cli import MemberCLI, OpenSetCLI

        (MemberCLI if options.ensemble else OpenSetCLI)(["run", *arguments])

    def join(members: list[Path], folder: Path) -> Path:
        from osr_lightning.cli.ensemble import ensemble
        from osr_lightning.cli.lightning_cli import OpenSetCLI

        place = [f"--trainer.experiment={folder.parent.name}", f"--trainer.version={folder.name}"]
        shared = [*beginning_with(further, ("--trainer.", "--data.", "--evaluation.")), *place]
        path = ensemble(members, options=shared)
        OpenSetCLI(["test", f"--ckpt_path={path}", *shared])
        return path

    for path in run_study(runs, mine, train, join if options.ensemble else None):
        print(path)
