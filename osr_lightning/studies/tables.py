"""The table of a study: means and standard deviations over seeds and splits, as CSV and as a page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from osr_lightning.evaluation.grouping import (
    ALL,
    Mean,
    Measure,
    differences,
    means,
    measures,
    shown,
)
from osr_lightning.evaluation.render import read_results, render
from osr_lightning.writing import replacing, write_text

COLUMNS = ("config", "measure", "score", "unknown_set", "mean", "deviation", "runs")
PAIRED = ("difference", "difference_deviation", "pairs")
_RATES = {
    "closed_set_accuracy": "closed set",
    "total_accuracy": "total",
    "openauc": "OpenAUC",
    "oscr": "OSCR",
}


class Finished(NamedTuple):
    """A run that is done.

    Attributes:
        config: name of its config.
        split: name of its class split, or empty.
        seed: of its training.
        folder: its run folder.
    """

    config: str
    split: str
    seed: int
    folder: Path


class Group(NamedTuple):
    """The runs of one config.

    Attributes:
        config: its name.
        score: that decides.
        means: of every measure.
        paired: of the differences from the first config, run by run of equal seed and split.
    """

    config: str
    score: str
    means: dict[Measure, Mean]
    paired: dict[Measure, Mean]


def groups_of(runs: Sequence[Finished]) -> list[Group]:
    """One group per config, in the order of the runs."""
    found: dict[str, dict[tuple[str, int], dict[Measure, float]]] = {}
    scores: dict[str, str] = {}
    for run in runs:
        results = read_results(run.folder)
        found.setdefault(run.config, {})[run.split, run.seed] = measures(results)
        scores.setdefault(run.config, str((results.get("score") or {}).get("name")))
    first = next(iter(found.values()), {})
    return [
        Group(config, scores[config], means(ran.values()), {} if ran is first else differences(ran, first))
        for config, ran in found.items()
    ]


def write_tables(runs: Sequence[Finished], planned: int, folder: Path, *, say: bool) -> list[Path]:
    """Write ``study.csv`` and ``study.html`` of the runs that are finished.

    Args:
        runs: those.
        planned: how many the study has.
        folder: of the two files.
        say: whether to print the table as well.

    Returns:
        The files.
    """
    groups = groups_of(runs)
    with (
        replacing(folder / "study.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *PAIRED])
        for group in groups:
            for measure, mean in group.means.items():
                paired = group.paired.get(measure, ("", "", ""))
                writer.writerow(
                    [group.config, measure.name, measure.score, measure.unknown_set, *mean, *paired]
                )
    sets = unknown_sets(groups)
    page = render(
        "study.html.j2",
        groups=groups,
        runs=[(run, run.folder.relative_to(folder).as_posix()) for run in runs],
        planned=planned,
        rates=_RATES,
        sets=sets,
        rows=[(group, headline(group, sets)) for group in groups],
        scores=[(group, score_rows(group, sets)) for group in groups],
        shown=shown,
        name=folder.name,
    )
    write_text(folder / "study.html", page)
    if say:
        print_groups(groups, sets, len(runs), planned)
    return [folder / "study.csv", folder / "study.html"]


def unknown_sets(groups: Sequence[Group]) -> list[str]:
    """Every unknown set, all of them together last where there are several."""
    named = [m.unknown_set for group in groups for m in group.means if m.name == "auroc"]
    found = [name for name in dict.fromkeys(named) if name != ALL]
    return [*found, ALL] if len(found) > 1 else found


def headline(group: Group, sets: Sequence[str]) -> list[str]:
    """The cells of a config: rates of ``_RATES``, then the AUROC of its score on each unknown set."""
    rates = [
        group.means.get(Measure(name, "", "" if name == "closed_set_accuracy" else ALL)) for name in _RATES
    ]
    ranked = [group.means.get(Measure("auroc", group.score, name)) for name in sets]
    return [shown(mean) for mean in [*rates, *ranked]]


def score_rows(group: Group, sets: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Per score its AUROC on each unknown set, the deciding one first."""
    scores = dict.fromkeys(m.score for m in group.means if m.name == "auroc")
    ordered = [group.score, *(score for score in scores if score != group.score)]
    return [(s, [shown(group.means.get(Measure("auroc", s, name))) for name in sets]) for s in ordered]


def print_groups(groups: Sequence[Group], sets: Sequence[str], finished: int, planned: int) -> None:
    """Print a line per config."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    titles = [*_RATES.values(), *(f"AUROC {name}" for name in sets)]
    table = Table("config", "runs", *titles, title=f"{finished} of {planned} runs, mean ± deviation, percent")
    for group in groups:
        count = max(mean.runs for mean in group.means.values())
        table.add_row(group.config, str(count), *headline(group, sets))
    console.print(table)
