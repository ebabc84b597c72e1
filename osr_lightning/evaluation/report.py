"""A run folder's saved files -> ``report.html``, one page that needs nothing but itself."""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

import numpy as np

from osr_lightning.evaluation.acceptance import IntArray, acceptance
from osr_lightning.evaluation.render import count, percent, rate, read_results, render
from osr_lightning.evaluation.table import PredictionTable

# The measures of the headline table: key, name, format, what it says.
HEADLINE = (
    ("known_accuracy", "known accuracy", "percent", "known images accepted with the right class"),
    ("unknown_accuracy", "unknown accuracy", "percent", "unknown images rejected"),
    ("total_accuracy", "total accuracy", "percent", "all images with the right answer"),
    ("auroc", "AUROC", "rate", "how often an unknown image outscores a known one, whatever the threshold"),
    ("oscr", "OSCR", "rate", "the same, with wrongly classified known images counted as lost"),
    ("fpr95_known", "FPR95 (known)", "percent", "unknown images accepted when 95% of the known are"),
    ("fpr95_unknown", "FPR95 (unknown)", "percent", "known images rejected when 95% of the unknown are"),
    ("binary_accuracy", "binary accuracy", "percent", "right in known or unknown, whichever the class"),
    ("balanced_accuracy", "balanced accuracy", "percent", "the same, with known and unknown weighing alike"),
    ("precision", "precision", "percent", "unknown among the rejected images"),
    ("f1", "F1", "rate", "harmonic mean of precision and unknown accuracy"),
    ("macro_f1", "macro F1", "rate", "mean F1 of all classes, unknown being one"),
)
# The figures in reading order: file name, what to look for.
FIGURES = {
    "score_histograms": "The further apart known and unknown images lie, the better any threshold can do.",
    "roc": "Each point of a curve is a threshold; up and to the left is better.",
    "oscr": "As the ROC, but a known image counts only if its class is right; up and to the left is better.",
    "precision_recall": "Depends on the share of unknown images, which the legend names.",
    "confusion": "Counts, and shares of the row. Last row and column: unknown.",
    "binary_confusion": "The decision known or unknown alone.",
    "closed_confusion": "The classifier by itself, before anything is rejected.",
    "reliability": "Bars above the diagonal: less confident than right; below: more.",
    "risk_coverage": "How much rejecting the highest scores lowers the error among the rest.",
    "tsne": "Images with similar outputs lie close together; unknown images are black.",
    "gallery": "The mistakes that the score was surest of, with the true class or set and the answer given.",
    "learning_curves": "A validation curve that turns away from the training one means overfitting.",
    "optimization_history": "The trials of the search that chose the threshold.",
}


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from the saved files of a run folder alone.

    Args:
        run_dir: holds ``results.json``, ``predictions.csv`` and ``evaluation.npz``; ``config.yaml`` and
            ``figures/*.png`` are shown where they exist.

    Returns:
        The page's path.

    Raises:
        UserError: if one of the first three is missing or damaged.
    """
    results = read_results(run_dir)
    table = PredictionTable.load(run_dir)
    config = run_dir / "config.yaml"
    page = render(
        "report.html.j2",
        results=results,
        verdict=verdict(results),
        headline=HEADLINE,
        sweep=threshold_sweep(table),
        figures=_figures(run_dir / "figures"),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )
    path = run_dir / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def verdict(results: dict[str, Any]) -> str:
    """The run in one sentence.

    Args:
        results: of ``results.json``.
    """
    closed, pooled = results.get("closed_set") or {}, results.get("open_set") or {}
    known = (
        f"{percent(pooled.get('known_accuracy'))} of the {count(pooled.get('count_known'))} known images are "
        f"accepted with the right class"
    )
    if not pooled.get("count_unknown"):
        return (
            f"{known} ({percent(closed.get('accuracy'))} before rejecting any); there were no unknown images "
            "to test it on."
        )
    return (
        f"{known}, and {percent(pooled.get('unknown_accuracy'))} of the {count(pooled['count_unknown'])} "
        f"unknown images are rejected: {percent(pooled.get('total_accuracy'))} right in total, with an "
        f"AUROC of {rate(pooled.get('auroc'))}."
    )


def threshold_sweep(table: PredictionTable, positions: int = 500) -> dict[str, Any]:
    """The exact accuracies at thresholds from 'reject everything' to 'accept everything'.

    Args:
        table: the test run.
        positions: about how many thresholds, evenly spaced by rank among the distinct scores; the one in
            use is always among them.

    Returns:
        ``threshold`` ascending, and ``known``, ``unknown`` and ``total`` accuracy at each, ``None`` where
        undefined; ``start``, the index of the threshold in use.
    """
    known, right = table.known, table.predicted_class == table.label
    counts = acceptance(table.score, ~known, right)
    distinct = counts.threshold[np.isfinite(counts.threshold)]
    if len(distinct):
        picked = np.unique(
            np.linspace(0, len(distinct) - 1, min(positions, len(distinct))).round().astype(int)
        )
        distinct = np.concatenate([[np.nextafter(distinct[0], -np.inf)], distinct[picked]])
    # JSON has no infinity; the largest float lets every finite score pass as well
    in_use = float(np.nan_to_num(table.threshold))
    thresholds = np.unique(np.append(distinct, in_use))
    at = counts.at(thresholds)
    num_known, num_unknown = int(known.sum()), int((~known).sum())
    rejected_unknown = num_unknown - at.unknown

    def share(hits: IntArray, total: int) -> list[float | None]:
        return [int(hit) / total if total else None for hit in hits]

    both = num_known + num_unknown if num_known and num_unknown else 0
    return {
        "threshold": thresholds.tolist(),
        "known": share(at.correct, num_known),
        "unknown": share(rejected_unknown, num_unknown),
        "total": share(at.correct + rejected_unknown, both),
        "start": int(np.searchsorted(thresholds, in_use)),
    }


def main(arguments: list[str]) -> None:
    """The command ``osr report``.

    Args:
        arguments: those after the command's name.
    """
    parser = argparse.ArgumentParser("osr report", description="Write report.html of run folders again.")
    parser.add_argument(
        "run", nargs="+", type=Path, help="a run folder, such as lightning_logs/NAME/version_0"
    )
    for run_dir in parser.parse_args(arguments).run:
        print(write_report(run_dir))


def _figures(folder: Path) -> list[dict[str, str]]:
    """The saved figures in reading order, embedded; those of unknown name come last."""
    order = list(FIGURES)
    paths = sorted(folder.glob("*.png"), key=lambda path: path.stem)
    paths.sort(key=lambda path: order.index(path.stem) if path.stem in FIGURES else len(order))
    return [
        {
            "name": path.stem.replace("_", " "),
            "caption": FIGURES.get(path.stem, ""),
            "data": "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(),
        }
        for path in paths
    ]
