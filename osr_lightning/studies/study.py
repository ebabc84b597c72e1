"""Studies: configs x seeds x class splits in one process, and one table of what they reached."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

import yaml

from osr_lightning.atomic_write import (
    folder_name,
    only_one,
    refuse_outside,
    replacing_rows,
    report_write_errors,
    write_text,
)
from osr_lightning.data.class_splits import ClassSplit, class_splits
from osr_lightning.data.sources import shared_sets
from osr_lightning.errors import UserError
from osr_lightning.evaluation.report.places import link
from osr_lightning.evaluation.report.render import read_results, render
from osr_lightning.evaluation.run_groups import (
    MEASURES,
    RATES,
    group,
    headline,
    mean_text,
    print_groups,
    score_rows,
    titles,
    unknown_sets,
)
from osr_lightning.recogniser.rows import table_sink

_LAST = "report.html"  # the last file that a run writes
_KEPT = "arguments.json"  # in a run's folder: what it was started with


COLUMNS = ("config", "measure", "score", "unknown_set", "mean", "deviation", "runs")
PAIRED = ("difference", "difference_deviation", "pairs")


class StudyRun(NamedTuple):
    """One run of a study.

    Attributes:
        recipe: name of its config, or of an ensemble of that.
        config: its YAML file.
        split: e.g. ``arpl1``; empty without splits.
        seed: of the training.
        folder: its run folder.
        arguments: of ``osr run``.
    """

    recipe: str
    config: Path
    split: str
    seed: int
    folder: Path
    arguments: list[str]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name


def plan_runs(
    configs: Sequence[Path],
    seeds: Sequence[int],
    splits: str | None,
    name: str | None,
    further: Sequence[str],
    *,
    root: Path = Path(),
    known: str | None = None,
) -> list[StudyRun]:
    """The runs of a study, in order.

    Args:
        configs: YAML files.
        seeds: of the trainings.
        splits: name of class splits.
        name: of the study.
        further: options of ``osr run``; unknown sets among them go before those of the splits.
        root: the folder that holds lightning_logs.
        known: source of the known images, where the options name one; else the config does.

    Raises:
        UserError: for a config that is missing, or two of one name.
    """
    if missing := [path for path in configs if not path.is_file()]:
        raise UserError(f"there is no config {missing[0]}; name a YAML file as for osr run --config")
    stems = [path.stem for path in configs]
    if len({*stems}) < len(stems):
        raise UserError("two configs have the same file name, and so would their runs; rename one of them")
    name = name or "-".join([*stems, *([splits] if splits else [])])
    folder = root / "lightning_logs" / folder_name("--name", name)
    runs = []
    parts = [(config, *part) for config in configs for part in _classes(config, splits, known)]
    for (config, split, classes), seed in product(parts, seeds):
        run = "-".join([config.stem, *([split] if split else []), f"seed{seed}"])
        arguments = [
            f"--config={config}",
            "--trainer.devices=1",
            *([] if classes.unknown is None else [f"--data.unknown={json.dumps(classes.unknown)}"]),
            *further,
            *([] if classes.known is None else [f"--data.known_classes={list(classes.known)}"]),
            f"--seed_everything={seed}",
            f"--trainer.experiment={name}",
            f"--trainer.version={run}",
        ]
        runs.append(StudyRun(config.stem, config, split, seed, folder / run, arguments))
    return runs


def _classes(config: Path, splits: str | None, known: str | None) -> list[tuple[str, ClassSplit]]:
    if splits is None:
        return [("", ClassSplit(None))]
    try:
        named = str(yaml.safe_load(config.read_text(encoding="utf-8"))["data"]["known"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError):
        named = "mnist"
    found = class_splits(splits, known or named, named)
    apart = "_" if splits[-1].isdecimal() else ""
    return [(f"{splits}{apart}{number}", split) for number, split in enumerate(found, start=1)]


def shard(runs: Sequence[StudyRun], part: str | None) -> list[StudyRun]:
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


def run_study(
    runs: Sequence[StudyRun],
    mine: Sequence[StudyRun],
    train: Callable[[list[str]], object],
    join: Callable[[list[Path], Path], Path] | None = None,
) -> list[Path]:
    """Train what is not finished, join the seeds of each config if asked, and write and print the table.

    Args:
        runs: of the whole study.
        mine: those that this process is to make.
        train: ``osr run`` with these options.
        join: makes an ensemble of checkpoints and tests it, into a run folder; None for no ensembles.

    Returns:
        ``study.csv`` and ``study.html``.

    Raises:
        UserError: where runs were made with other options.
    """
    for run in mine:
        _refuse_other(run)

    def go_on(number: int, run: StudyRun, *, wait: bool) -> bool:
        with report_write_errors(run.folder):
            run.folder.mkdir(parents=True, exist_ok=True)
        with only_one(run.folder, wait=wait) as alone:
            done = _is_finished(run)
            state = "finished before" if done else str(run.folder) if alone else "another process trains it"
            print(f"run {number} of {len(mine)}: {run.name}, {state}", flush=True)
            if alone and not done:
                _refuse_other(run)  # another process may have begun it by now
                _start(run, train)
        table(runs)
        return alone or done

    with shared_sets():
        numbered = list(enumerate(mine, start=1))
        # what another process trains is waited for once nothing else is left
        for number, run in [one for one in numbered if not go_on(*one, wait=False)]:
            print(f"waiting for {run.folder}", flush=True)
            go_on(number, run, wait=True)
        joined = [] if join is None else _ensembles(runs, join)
    return table(runs, joined, say=True)


def _start(run: StudyRun, train: Callable[[list[str]], object]) -> None:
    """Train, calibrate and test; or go on with it, from its last checkpoint."""
    last = run.folder / "checkpoints" / "last.ckpt"
    resumed = [f"--ckpt_path={last}"] if last.is_file() else []
    if not resumed:  # it was stopped before its first checkpoint
        _empty(run.folder)
    write_text(run.folder / _KEPT, json.dumps(_description(run), indent=2) + "\n")
    try:
        train([*run.arguments, *resumed])
    except UserError:
        if not last.is_file():  # it was refused, and whoever mends an option begins anew
            _empty(run.folder)
        raise


def _empty(folder: Path) -> None:
    """Remove what is in a run's folder, which is locked itself and stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.name.startswith("."):
            path.unlink()


def _ensembles(runs: Sequence[StudyRun], join: Callable[[list[Path], Path], Path]) -> list[StudyRun]:
    """Join and test the seeds of each config and split, where all are finished."""
    found = []
    for (config, split), same in groupby(runs, key=lambda run: (run.config, run.split)):
        members = list(same)
        if not all(map(_is_finished, members)):
            continue
        first = members[0]
        name = "-".join([config.stem, *([split] if split else []), f"ensemble{len(members)}"])
        folder = first.folder.with_name(name)
        with only_one(first.folder, wait=True):
            if not (folder / _LAST).is_file():
                join([run.folder / "checkpoints" / "best.ckpt" for run in members], folder)
        found.append(first._replace(recipe=f"{first.recipe}, {len(members)} joined", folder=folder))
    return found


def table(runs: Sequence[StudyRun], joined: Sequence[StudyRun] = (), *, say: bool = False) -> list[Path]:
    """Write ``study.csv`` and ``study.html`` of the runs that are finished.

    Args:
        runs: of the whole study.
        joined: ensembles of them, which are.
        say: whether to print the table as well.

    Returns:
        The files.
    """
    finished = list(filter(_is_finished, runs))
    count, folder = f"{len(finished)} of {len(runs)} runs", runs[0].folder.parent
    shown = [*finished, *joined]
    groups = group([(run.recipe, (run.split, run.seed), read_results(run.folder)) for run in shown])
    with replacing_rows(folder / "study.csv") as file:
        write = table_sink(file, [*COLUMNS, *PAIRED])
        for one in groups:
            for measure, mean in one.means.items():
                paired = one.paired.get(measure, ("", "", ""))
                write([[one.name, measure.name, measure.score, measure.unknown_set, *mean, *paired]])
    sets = unknown_sets(groups)
    path = folder / "study.html"
    page = render(
        "study.html.j2",
        groups=groups,
        runs=[(run, link(path, run.folder / "report.html")) for run in shown],
        count=count,
        rates=RATES,
        measures=MEASURES,
        sets=sets,
        titles=titles(sets),
        rows=[(one, headline(one, sets)) for one in groups],
        scores=[(one, score_rows(one, sets)) for one in groups],
        mean_text=mean_text,
        name=folder.name,
    )
    write_text(path, page)
    if say:
        print_groups(groups, f"{count}, mean ± deviation, percent")
    return [folder / "study.csv", path]


def _is_finished(run: StudyRun) -> bool:
    return (run.folder / _LAST).is_file()


def _description(run: StudyRun) -> dict[str, object]:
    arguments = [a for a in run.arguments if not a.startswith("--config=")]
    return {"arguments": arguments, "config_sha256": _digest(run.config)}


def _digest(config: Path) -> str:
    """Of what a config says, whatever its comments and its layout."""
    content = config.read_bytes()
    with suppress(yaml.YAMLError):  # it gets its sentence once it is read
        tokens = [(t.id, getattr(t, "value", None), getattr(t, "plain", None)) for t in yaml.scan(content)]
        content = repr(tokens).encode()
    return hashlib.sha256(content).hexdigest()


def _refuse_other(run: StudyRun) -> None:
    refuse_outside(run.folder)
    try:
        before = json.loads((run.folder / _KEPT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if run.folder.exists() and any(not path.name.startswith(".") for path in run.folder.iterdir()):
            raise UserError(f"{run.folder} is no run of this study; give the study another --name") from None
        return
    except (OSError, ValueError):
        before = None
    if before != _description(run):
        raise UserError(
            f"{run.folder} was made with other options or another {run.config.name}; give the study another "
            "--name, or remove that folder"
        )
