"""The table of a study: means and standard deviations over seeds and splits, as CSV and as a page."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from osr_lightning.evaluation.grouping import shown
from osr_lightning.evaluation.groups import (
    RATES,
    Group,
    group,
    headline,
    print_groups,
    score_rows,
    titles,
    unknown_sets,
)
from osr_lightning.evaluation.places import link
from osr_lightning.evaluation.render import read_results, render
from osr_lightning.writing import replacing_rows, write_text

COLUMNS = ("config", "measure", "score", "unknown_set", "mean", "deviation", "runs")
PAIRED = ("difference", "difference_deviation", "pairs")


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


def groups_of(runs: Sequence[Finished]) -> list[Group]:
    """One group per config, in the order of the runs."""
    return group([(run.config, (run.split, run.seed), read_results(run.folder)) for run in runs])


def write_tables(runs: Sequence[Finished], count: str, folder: Path, *, say: bool) -> list[Path]:
    """Write ``study.csv`` and ``study.html`` of the runs that are finished.

    Args:
        runs: those.
        count: how many of the study's runs these are, in words.
        folder: of the two files.
        say: whether to print the table as well.

    Returns:
        The files.
    """
    groups = groups_of(runs)
    with replacing_rows(folder / "study.csv") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *PAIRED])
        for one in groups:
            for measure, mean in one.means.items():
                paired = one.paired.get(measure, ("", "", ""))
                writer.writerow([one.name, measure.name, measure.score, measure.unknown_set, *mean, *paired])
    sets = unknown_sets(groups)
    path = folder / "study.html"
    page = render(
        "study.html.j2",
        groups=groups,
        runs=[(run, link(path, run.folder / "report.html")) for run in runs],
        count=count,
        rates=RATES,
        sets=sets,
        titles=titles(sets),
        rows=[(one, headline(one, sets)) for one in groups],
        scores=[(one, score_rows(one, sets)) for one in groups],
        shown=shown,
        name=folder.name,
    )
    write_text(path, page)
    if say:
        print_groups(groups, f"{count}, mean ± deviation, percent")
    return [folder / "study.csv", path]
