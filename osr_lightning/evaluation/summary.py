"""The table on the console at the end of a test run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from osr_lightning.errors import one_line

MOST_CLASSES = 20  # that are named on the console; the report has all


def print_summary(results: dict[str, Any], folder: Path | None) -> None:
    """Print the headline numbers of ``results.json`` and where everything is."""
    console = Console(markup=False)  # names may hold brackets
    title = results["experiment"] if folder is None else f"{results['experiment']} ({folder})"
    table = Table("", "images", "accuracy", "AUROC", "FPR95 known", title=title)
    closed, pooled = results["closed_set"], results["open_set"]
    table.add_row("known, none rejected", str(closed["count"]), _percent(closed["accuracy"]), "", "")
    table.add_row("known", str(pooled["count_known"]), _percent(pooled["known_accuracy"]), "", "")
    for name, numbers in results["unknown"].items():
        table.add_row(
            one_line(f"unknown: {name}"),
            str(numbers["count_unknown"]),
            _percent(numbers["unknown_accuracy"]),
            _rate(numbers["auroc"]),
            _rate(numbers["fpr95_known"]),
        )
    total = pooled["count_known"] + pooled["count_unknown"]
    table.add_row(
        "total",
        str(total),
        _percent(pooled["total_accuracy"]),
        _rate(pooled["auroc"]),
        _rate(pooled["fpr95_known"]),
        style="bold",
    )
    table.add_row(
        "known or unknown?",
        str(total),
        _percent(pooled["binary_accuracy"]),
        _rate(pooled["binary_auroc"]),
        "",
    )
    console.print(table)
    classes = closed.get("per_class") or {}
    if 0 < len(classes) <= MOST_CLASSES:
        each = (f"{name} {_percent(numbers['accuracy'])}" for name, numbers in classes.items())
        console.print(
            one_line(f"by class, none rejected: {', '.join(each)}"), soft_wrap=True, highlight=False
        )
    threshold = results["threshold"]
    console.print(
        f"threshold {threshold['value']:.6g} on the score {results['score']['name']} "
        f"by {threshold['method']}, from {threshold['calibrated_on']}",
        soft_wrap=True,
        highlight=False,
    )
    if threshold["optimistic"]:
        console.print(
            "optimistic: test images chose this threshold, so the accuracies above flatter it",
            style="bold yellow",
            soft_wrap=True,
        )
    for warning in results.get("warnings", ()):
        console.print(one_line(f"warning: {warning}"), style="bold yellow", soft_wrap=True, markup=False)
    places = {"checkpoint ": results["checkpoint"]}
    if folder is not None:
        places = {
            "run folder ": str(folder),
            **places,
            "report     ": str(folder / "report.html"),
            "TensorBoard": f"tensorboard --logdir {folder.parent}",
        }
    for what, where in places.items():
        console.print(f"{what}  {where}", soft_wrap=True, highlight=False, markup=False)


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}%"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.4f}"
