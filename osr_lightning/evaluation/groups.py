"""Runs of one recipe as a line of a table: closed set, decisions, and the ranking of every unknown set."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from osr_lightning.errors import one_line
from osr_lightning.evaluation.grouping import ALL, Mean, Measure, differences, means, measures, shown
from osr_lightning.evaluation.printing import new_table

RATES = {"closed_set_accuracy": "closed set", "total_accuracy": "total", "openauc": "OpenAUC", "oscr": "OSCR"}


class Group(NamedTuple):
    """The runs of one recipe.

    Attributes:
        name: of the recipe.
        score: that decides.
        means: of every measure.
        paired: of the differences from the first recipe, run by run of equal key.
    """

    name: str
    score: str
    means: dict[Measure, Mean]
    paired: dict[Measure, Mean]

    @property
    def runs(self) -> int:
        """How many there are."""
        return max((mean.runs for mean in self.means.values()), default=0)


def group(runs: Sequence[tuple[str, Hashable, Mapping[str, Any]]]) -> list[Group]:
    """Group runs by the name of their recipe, in the order of the first of each.

    Args:
        runs: per run the name of its recipe, a key that pairs it with those of other recipes (its seed, its
            split), and the content of its ``results.json``.
    """
    found: dict[str, dict[Hashable, dict[Measure, float]]] = {}
    scores: dict[str, str] = {}
    for name, key, results in runs:
        found.setdefault(name, {})[key] = measures(results)
        scores.setdefault(name, str((results.get("score") or {}).get("name")))
    first = next(iter(found.values()), {})
    return [
        Group(name, scores[name], means(ran.values()), {} if ran is first else differences(ran, first))
        for name, ran in found.items()
    ]


def unknown_sets(groups: Sequence[Group]) -> list[str]:
    """Every unknown set, all of them together last where there are several."""
    named = [m.unknown_set for group in groups for m in group.means if m.name == "auroc"]
    found = [name for name in dict.fromkeys(named) if name != ALL]
    return [*found, ALL] if len(found) > 1 else found


def titles(sets: Sequence[str]) -> list[str]:
    """What :func:`headline` gives, by unknown sets in the same order."""
    return [*RATES.values(), *(f"AUROC {name}" for name in sets)]


def headline(group: Group, sets: Sequence[str]) -> list[str]:
    """The cells of a recipe: rates of ``RATES``, then the AUROC of its score on each unknown set."""
    rates = [
        group.means.get(Measure(name, "", "" if name == "closed_set_accuracy" else ALL)) for name in RATES
    ]
    ranked = [group.means.get(Measure("auroc", group.score, name)) for name in sets]
    return [shown(mean) for mean in [*rates, *ranked]]


def score_rows(group: Group, sets: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Per score its AUROC on each unknown set, the deciding one first."""
    scores = dict.fromkeys(m.score for m in group.means if m.name == "auroc")
    ordered = [group.score, *(score for score in scores if score != group.score)]
    return [(s, [shown(group.means.get(Measure("auroc", s, name))) for name in sets]) for s in ordered]


def print_groups(groups: Sequence[Group], title: str) -> None:
    """Print a line per recipe."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    sets = unknown_sets(groups)
    table = new_table(console, "", "runs", *titles(sets), title=title)
    for group in groups:
        table.add_row(one_line(group.name), str(group.runs), *headline(group, sets))
    console.print(table)
