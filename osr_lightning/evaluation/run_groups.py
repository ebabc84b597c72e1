"""Runs of one recipe as a line of a table: closed set, decisions, and the ranking of every unknown set."""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from osr_lightning.errors import one_line
from osr_lightning.evaluation.console import new_table
from osr_lightning.scoring.calibration import is_finite

# OpenAUC always equals OSCR, and is in the CSV files alone
RATES = {"closed_set_accuracy": "closed set", "total_accuracy": "total", "oscr": "OSCR (OpenAUC)"}
# what pages call each measure
MEASURES = {**RATES, "auroc": "AUROC", "fpr95_known": "FPR95 (known)"}


class RunGroup(NamedTuple):
    """The runs of one recipe.

    Attributes:
        name: of the recipe.
        score: that decides.
        means: of every measure.
        paired: of the differences from the first recipe, run by run of equal key.
    """

    name: str
    score: str
    means: dict[MeasureKey, Mean]
    paired: dict[MeasureKey, Mean]

    @property
    def runs(self) -> int:
        """How many there are."""
        return max((mean.runs for mean in self.means.values()), default=0)


def group(runs: Sequence[tuple[str, Hashable, Mapping[str, Any]]]) -> list[RunGroup]:
    """Group runs by the name of their recipe, in the order of the first of each.

    Args:
        runs: per run the name of its recipe, a key that pairs it with those of other recipes (its seed, its
            split), and the content of its ``results.json``.
    """
    found: dict[str, dict[Hashable, dict[MeasureKey, float]]] = {}
    scores: dict[str, str] = {}
    for name, key, results in runs:
        found.setdefault(name, {})[key] = run_measures(results)
        scores.setdefault(name, str((results.get("score") or {}).get("name")))
    first = next(iter(found.values()), {})
    return [
        RunGroup(name, scores[name], means(ran.values()), {} if ran is first else differences(ran, first))
        for name, ran in found.items()
    ]


def unknown_sets(groups: Sequence[RunGroup]) -> list[str]:
    """Every unknown set, all of them together last where there are several."""
    named = [m.unknown_set for group in groups for m in group.means if m.name == "auroc"]
    found = [name for name in dict.fromkeys(named) if name != ALL]
    return [*found, ALL] if len(found) > 1 else found


def titles(sets: Sequence[str]) -> list[str]:
    """What `headline` gives, by unknown sets in the same order."""
    return [*RATES.values(), *(f"AUROC {name}" for name in sets)]


def headline(group: RunGroup, sets: Sequence[str]) -> list[str]:
    """The cells of a recipe: rates of ``RATES``, then the AUROC of its score on each unknown set."""
    rates = [
        group.means.get(MeasureKey(name, "", "" if name == "closed_set_accuracy" else ALL)) for name in RATES
    ]
    ranked = [group.means.get(MeasureKey("auroc", group.score, name)) for name in sets]
    return [mean_text(mean) for mean in [*rates, *ranked]]


def score_rows(group: RunGroup, sets: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Per score its AUROC on each unknown set, the deciding one first."""
    scores = dict.fromkeys(m.score for m in group.means if m.name == "auroc")
    ordered = [group.score, *(score for score in scores if score != group.score)]
    return [(s, [mean_text(group.means.get(MeasureKey("auroc", s, name))) for name in sets]) for s in ordered]


def print_groups(groups: Sequence[RunGroup], title: str) -> None:
    """Print a line per recipe."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    sets = unknown_sets(groups)
    table = new_table(console, "", "runs", *titles(sets), title=title)
    for group in groups:
        table.add_row(one_line(group.name), str(group.runs), *headline(group, sets))
    console.print(table)


ALL = "all"  # the unknown sets pooled
# of every run; the others are per score and unknown set
OVERALL = {
    "closed_set_accuracy": ("closed_set", "accuracy"),
    "known_accuracy": ("open_set", "known_accuracy"),
    "total_accuracy": ("open_set", "total_accuracy"),
    "openauc": ("open_set", "openauc"),
    "oscr": ("open_set", "oscr"),
}
RANKING = ("auroc", "fpr95_known")


class MeasureKey(NamedTuple):
    """What is averaged.

    Attributes:
        name: e.g. ``auroc``.
        score: whose; empty where the decision itself is measured.
        unknown_set: its name, `ALL` for all of them, empty for the known images alone.
    """

    name: str
    score: str
    unknown_set: str


class Mean(NamedTuple):
    """Of several runs.

    Attributes:
        mean: of their values.
        deviation: the sample standard deviation (over n - 1); None of one run.
        runs: ``n``.
    """

    mean: float
    deviation: float | None
    runs: int


def run_measures(results: Mapping[str, Any]) -> dict[MeasureKey, float]:
    """All numbers of one ``results.json`` that are worth a mean; what is undefined is left out."""
    score = str((results.get("score") or {}).get("name"))
    found: dict[MeasureKey, object] = {}
    for name, (section, key) in OVERALL.items():
        unknown_set = "" if section == "closed_set" else ALL
        found[MeasureKey(name, "", unknown_set)] = (results.get(section) or {}).get(key)
    for unknown_set, numbers in (results.get("unknown") or {}).items():
        for name in ("unknown_accuracy", "total_accuracy", "openauc"):
            found[MeasureKey(name, "", unknown_set)] = numbers.get(name)
    sections = {ALL: results.get("open_set") or {}, **(results.get("unknown") or {})}
    for unknown_set, numbers in sections.items():
        for name in RANKING:
            found[MeasureKey(name, score, unknown_set)] = numbers.get(name)
    for other, ranking in (results.get("scores") or {}).items():
        for unknown_set, numbers in {ALL: ranking.get("pooled"), **(ranking.get("unknown") or {})}.items():
            for name in RANKING:
                found.setdefault(MeasureKey(name, other, unknown_set), (numbers or {}).get(name))
    return {measure: float(value) for measure, value in found.items() if is_finite(value)}


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and sample standard deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Mean(statistics.fmean(values), deviation, len(values))


def means(runs: Iterable[Mapping[MeasureKey, float]]) -> dict[MeasureKey, Mean]:
    """The mean of each measure over the runs that have it, in the order of the first."""
    values: dict[MeasureKey, list[float]] = {}
    for run in runs:
        for measure, value in run.items():
            values.setdefault(measure, []).append(value)
    return {measure: mean_of(found) for measure, found in values.items()}


def differences(
    runs: Mapping[Any, Mapping[MeasureKey, float]], reference: Mapping[Any, Mapping[MeasureKey, float]]
) -> dict[MeasureKey, Mean]:
    """The mean of paired differences: each run less the reference's of the same key (seed and split)."""
    pairs = [(found, reference[key]) for key, found in runs.items() if key in reference]
    return means({m: value - other[m] for m, value in found.items() if m in other} for found, other in pairs)


def mean_text(mean: Mean | None) -> str:
    """A mean as text, in percent with two digits."""
    if mean is None:
        return "-"
    spread = "" if mean.deviation is None else f" ± {100 * mean.deviation:.2f}"
    return f"{100 * mean.mean:.2f}{spread}"
