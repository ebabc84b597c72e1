"""Several runs of one recipe -> mean and standard deviation of what they reached."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from osr_lightning.evaluation.render import is_number

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


class Measure(NamedTuple):
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


def measures(results: Mapping[str, Any]) -> dict[Measure, float]:
    """All numbers of one ``results.json`` that are worth a mean; what is undefined is left out."""
    score = str((results.get("score") or {}).get("name"))
    found: dict[Measure, object] = {}
    for name, (section, key) in OVERALL.items():
        unknown_set = "" if section == "closed_set" else ALL
        found[Measure(name, "", unknown_set)] = (results.get(section) or {}).get(key)
    for unknown_set, numbers in (results.get("unknown") or {}).items():
        for name in ("unknown_accuracy", "total_accuracy", "openauc"):
            found[Measure(name, "", unknown_set)] = numbers.get(name)
    sections = {ALL: results.get("open_set") or {}, **(results.get("unknown") or {})}
    for unknown_set, numbers in sections.items():
        for name in RANKING:
            found[Measure(name, score, unknown_set)] = numbers.get(name)
    for other, ranking in (results.get("scores") or {}).items():
        for unknown_set, numbers in {ALL: ranking.get("pooled"), **(ranking.get("unknown") or {})}.items():
            for name in RANKING:
                found.setdefault(Measure(name, other, unknown_set), (numbers or {}).get(name))
    return {measure: float(value) for measure, value in found.items() if is_number(value)}


def mean_of(values: Sequence[float]) -> Mean:
    """Mean and sample standard deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Mean(statistics.fmean(values), deviation, len(values))


def means(runs: Iterable[Mapping[Measure, float]]) -> dict[Measure, Mean]:
    """The mean of each measure over the runs that have it, in the order of the first."""
    values: dict[Measure, list[float]] = {}
    for run in runs:
        for measure, value in run.items():
            values.setdefault(measure, []).append(value)
    return {measure: mean_of(found) for measure, found in values.items()}


def differences(
    runs: Mapping[Any, Mapping[Measure, float]], reference: Mapping[Any, Mapping[Measure, float]]
) -> dict[Measure, Mean]:
    """The mean of paired differences: each run less the reference's of the same key (seed and split)."""
    pairs = [(found, reference[key]) for key, found in runs.items() if key in reference]
    return means({m: value - other[m] for m, value in found.items() if m in other} for found, other in pairs)


def shown(mean: Mean | None, percent: bool = True) -> str:
    """A mean as text, in percent with two digits, or with four."""
    if mean is None:
        return "-"
    scale, digits = (100, 2) if percent else (1, 4)
    spread = "" if mean.deviation is None else f" ± {scale * mean.deviation:.{digits}f}"
    return f"{scale * mean.mean:.{digits}f}{spread}"
