"""Several run folders -> one table, and how sure their differences are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osr_lightning.atomic_write import as_text, replacing_rows, write_text
from osr_lightning.data_spec import same_classes
from osr_lightning.errors import UserError, one_line
from osr_lightning.evaluation.bootstrap import interval, resample
from osr_lightning.evaluation.console import new_table
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.places import link, short_names
from osr_lightning.evaluation.report.render import (
    percent,
    rate,
    read_results,
    render,
    seconds,
    text,
)
from osr_lightning.evaluation.run_groups import RunGroup, group, headline, print_groups, titles, unknown_sets
from osr_lightning.recogniser.rows import path_cell, table_sink
from osr_lightning.scoring.calibration import is_finite

# Column of the table -> where results.json has it.
COLUMNS = {
    "model": ("model", "class"),
    "score": ("score", "name"),
    "threshold": ("threshold", "value"),
    "optimistic": ("threshold", "optimistic"),
    "closed_set_accuracy": ("closed_set", "accuracy"),
    "known_accuracy": ("open_set", "known_accuracy"),
    "unknown_accuracy": ("open_set", "unknown_accuracy"),
    "total_accuracy": ("open_set", "total_accuracy"),
    "auroc": ("open_set", "auroc"),
    "fpr95_known": ("open_set", "fpr95_known"),
    "fit_s": ("timing", "fit_s"),
    "test_s": ("timing", "test_s"),
    "images_per_s": ("timing", "images_per_s"),
}
# what runs of one experiment, model and score may differ in beside their seed
_SETTINGS = (
    *(("model", key) for key in ("network", "num_samples", "masks", "mirror")),
    *(("threshold", key) for key in ("method", "target")),
)
NO_NUMBERS = ("model", "score", "optimistic")
DIFFERENCES = ("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        rows: per run ``run``, its folder, ``settings``, what it was run with and another was not, and the
            columns of ``COLUMNS``; ``None`` where undefined.
        differences: per further run ``run``; ``same_images``, whether it was tested on the first run's
            images; and if so per measure of ``DIFFERENCES`` its value minus the first run's with a 95%
            interval, ``(difference, low, high)``, or ``None`` where undefined.
        groups: runs of one experiment, model and score that differ in their seed alone, with every unknown
            set; a run that has no such others is a group of one.
    """

    rows: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    groups: list[RunGroup]


def compare(run_dirs: list[Path], output: Path, resamples: int = 1000, seed: int = 0) -> Comparison:
    """Put runs side by side, and write ``comparison.csv`` and ``comparison.html``.

    Runs tested on the same images are compared by a paired bootstrap: each resample draws the same images
    for both, so what the images have in common cancels out. The intervals cover other test images, not
    another training run.

    Args:
        run_dirs: at least one run folder; the first is the one that the others are measured against. One
            that is named twice, as by patterns that overlap, counts once.
        output: folder of the two files, made where it is missing.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        UserError: if a folder is no run folder; it says which and what is missing.
    """
    if not run_dirs:
        raise UserError("there is nothing to compare: name at least one run folder")
    places = [run_dir.resolve() for run_dir in run_dirs]
    run_dirs = [run_dir for row, run_dir in enumerate(run_dirs) if places[row] not in places[:row]]
    results = [read_results(run_dir) for run_dir in run_dirs]
    first = PredictionTable.load(run_dirs[0])
    for run_dir, result in zip(run_dirs[1:], results[1:], strict=True):
        if sorted(result.get("classes") or ()) != sorted(results[0].get("classes") or ()):
            same_classes(
                first.class_names,
                tuple(result.get("classes") or ()),
                f"{run_dir}",
                f"of {run_dirs[0]}",
                "compare runs of the same classes",
            )
    samples, settings = resample(first, resamples, seed), differing(results)
    rows = [
        {"run": as_text(run_dir), "settings": own, **{name: _at(result, name) for name in COLUMNS}}
        for run_dir, own, result in zip(run_dirs, settings, results, strict=True)
    ]
    differences: list[dict[str, Any]] = []
    for run_dir, row, result in zip(run_dirs[1:], rows[1:], results[1:], strict=True):
        table = PredictionTable.load(run_dir)
        # equal rows may still be other images, drawn with another seed or made in another way
        same = result.get("test_images") == results[0].get("test_images") and _same_images(first, table)
        entry: dict[str, Any] = {"run": as_text(run_dir), "same_images": same}
        if entry["same_images"]:
            # equal seeds draw equal images, so the samples pair up
            other = resample(table, resamples, seed)
            paired = {name: other[name] - samples[name] for name in samples}
            for name in DIFFERENCES:
                bounds = interval(paired, name)
                defined = bounds and row[name] is not None and rows[0][name] is not None
                entry[name] = (row[name] - rows[0][name], *bounds) if defined and bounds else None
        differences.append(entry)
    comparison = Comparison(rows, differences, _by_seed(run_dirs, results))
    _write(comparison, run_dirs, output)
    return comparison


def print_comparison(comparison: Comparison) -> None:
    """Print both tables to the console, the runs by number so that the numbers fit 80 columns."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    table = new_table(console, "run", "closed", "known", "unknown", "total", "AUROC", "FPR95", "test s")
    for number, row in enumerate(comparison.rows, start=1):
        warning = ", optimistic: test images chose it" if row["optimistic"] else ""
        decision = f"{text(row['score'])} > {text(row['threshold'])}{warning}"
        console.print(
            one_line(f"{number}  {row['run']}: {_named(text(row['model']), row['settings'])}, {decision}"),
            soft_wrap=True,
        )
        table.add_row(
            str(number),
            *(percent(row[f"{name}_accuracy"]) for name in ("closed_set", "known", "unknown", "total")),
            rate(row["auroc"]),
            percent(row["fpr95_known"]),
            seconds(row["test_s"]),
        )
    console.print(table)
    if comparison.differences:
        title = "difference from run 1 in points of a hundred, 95% interval"
        table = new_table(console, "run", "known", "unknown", "total", "AUROC", title=title)
        for number, entry in enumerate(comparison.differences, start=2):
            table.add_row(str(number), *(difference(entry, name) for name in DIFFERENCES))
        console.print(table)
    print_groups(comparison.groups, "every unknown set, in percent; mean ± deviation over seeds")


def _by_seed(run_dirs: list[Path], results: list[dict[str, Any]]) -> list[RunGroup]:
    """Group the runs whose seeds all differ and all else that names them does not."""
    names = [
        _named(" ".join(str(part) for part in (r.get("experiment"), _at(r, "model"), _at(r, "score"))), own)
        for r, own in zip(results, differing(results), strict=True)
    ]
    seeds: dict[str, list[object]] = {}
    for name, result in zip(names, results, strict=True):
        seeds.setdefault(name, []).append(result.get("seed"))
    alone = {name for name, found in seeds.items() if len({*map(str, found)}) < len(found) or len(found) == 1}
    return group(
        [
            (run if name in alone else name, str(result.get("seed")), result)
            for run, name, result in zip(short_names(run_dirs), names, results, strict=True)
        ]
    )


def differing(results: list[dict[str, Any]]) -> list[str]:
    """Per run the settings in which the runs differ: ``num_samples 10``; empty where they are alike.

    Args:
        results: of each run's ``results.json``.
    """
    found = [{key: (r.get(part) or {}).get(key) for part, key in _SETTINGS} for r in results]
    names = [name for name in found[0] if len({text(one[name]) for one in found}) > 1]
    return [", ".join(f"{name} {text(one[name])}" for name in names) for one in found]


def _named(name: str, settings: str) -> str:
    return f"{name} ({settings})" if settings else name


def difference(entry: dict[str, Any], name: str) -> str:
    """One difference as text, in points of a hundred, with its interval.

    Args:
        entry: one of `Comparison.differences`.
        name: one of ``DIFFERENCES``.
    """
    if not entry["same_images"]:
        return "other images"
    if entry[name] is None:
        return "-"
    middle, low, high = (100 * value for value in entry[name])
    return f"{middle:+.2f} ({low:+.2f} to {high:+.2f})"


def _at(results: dict[str, Any], name: str) -> Any:  # noqa: ANN401 - whatever the JSON holds
    part, key = COLUMNS[name]
    value = (results.get(part) or {}).get(key)
    return value if name in NO_NUMBERS or is_finite(value) else None


def _same_images(first: PredictionTable, other: PredictionTable) -> bool:
    """Whether two tables have the same rows by index, source and label."""
    return (
        first.source_names == other.source_names
        and first.class_names == other.class_names
        and np.array_equal(first.source, other.source)
        and np.array_equal(first.label, other.label)
    )


def _write(comparison: Comparison, run_dirs: list[Path], output: Path) -> None:
    with replacing_rows(output / "comparison.csv") as file:
        header = ["run", *COLUMNS, "settings"]
        write = table_sink(file, header)
        for row in comparison.rows:
            shown = row | {"run": path_cell(row["run"])}
            write([[shown.get(name, "") for name in header]])
    page = output / "comparison.html"
    names = short_names(run_dirs)
    reports = {name: run_dir / "report.html" for name, run_dir in zip(names, run_dirs, strict=True)}
    sets = unknown_sets(comparison.groups)
    content = render(
        "comparison.html.j2",
        comparison=comparison,
        short=dict(zip(map(as_text, run_dirs), names, strict=True)),
        links={name: link(page, report) for name, report in reports.items() if report.is_file()},
        names=DIFFERENCES,
        difference=difference,
        sets=sets,
        titles=titles(sets),
        headline=headline,
    )
    write_text(page, content)
