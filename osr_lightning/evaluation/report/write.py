"""A run folder's saved files -> ``report.html``, one page that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osr_lightning.atomic_write import as_text, write_text
from osr_lightning.evaluation.acceptance import FloatArray, IntArray, acceptance
from osr_lightning.evaluation.caption import read_caption
from osr_lightning.evaluation.measures import MEASURES
from osr_lightning.evaluation.mistakes import FOLDER, Example, examples
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.effects import class_effects, effects
from osr_lightning.evaluation.report.places import link, shown_checkpoint, test_command, without_folders
from osr_lightning.evaluation.report.render import count, percent, rate, read_results, render
from osr_lightning.recogniser.examples import data_url

MAX_CLASSES = 50  # more make a table that nobody reads
COLUMN = 560  # CSS pixels of one of two columns of figures
MAX_BARS = 12  # unknown sets that the slider shows one by one


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` from the saved files of a run folder alone.

    Args:
        run_dir: holds ``results.json``, ``predictions.csv`` and ``evaluation.npz``; ``config.yaml`` and
            ``figures/*.png`` and ``figures/mistakes/*.png`` are shown where they exist.

    Returns:
        The page's path.

    Raises:
        UserError: if one of the first three is missing or damaged.
    """
    results = read_results(run_dir)
    table = PredictionTable.load(run_dir)
    config, path = run_dir / "config.yaml", run_dir / "report.html"
    study = run_dir.parent / "study.html"
    page = render(
        "report.html.j2",
        results=results,
        verdict=verdict(results),
        measures={name: measure for name, measure in MEASURES.items() if not measure.same_as},
        also=_other_names(),
        sweep=threshold_sweep(table),
        command=test_command(run_dir, results),
        checkpoint=shown_checkpoint(run_dir, results),
        effects=[effect._replace(name=without_folders(effect.name)) for effect in effects(table)],
        examples=_pictured(examples(table), run_dir),
        class_effects=class_effects(table) if table.num_classes <= MAX_CLASSES else {},
        figures=_figures(run_dir / "figures"),
        calibrated_on=without_folders((results.get("threshold") or {}).get("calibrated_on") or "-"),
        config=without_folders(config.read_text("utf-8", "backslashreplace")) if config.is_file() else "",
        study=link(path, study) if study.is_file() else "",
    )
    write_text(path, page, "backslashreplace")  # of names in predictions.csv that are no UTF-8
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
        undefined; ``sets``, of each unknown set (unless they are many) its ``name``, its number of ``images``
        and how many are ``rejected`` at each; ``start``, the index of the threshold in use.
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
        "sets": _rejected_by_set(table, thresholds),
        "start": int(np.searchsorted(thresholds, in_use)),
    }


def _rejected_by_set(table: PredictionTable, thresholds: FloatArray) -> list[dict[str, Any]]:
    sets = []
    for index, name in enumerate(table.source_names[1:], start=1):
        score = np.sort(table.score[table.source == index])
        rejected = len(score) - np.searchsorted(score, thresholds, side="right")
        if len(score):
            sets.append({"name": name, "images": len(score), "rejected": rejected.tolist()})
    return sets if len(sets) <= MAX_BARS else []


def _other_names() -> dict[str, str]:
    """Measure -> the names that it has as well."""
    names: dict[str, list[str]] = {}
    for measure in MEASURES.values():
        if measure.same_as:
            names.setdefault(measure.same_as, []).append(measure.label)
    return {name: ", ".join(others) for name, others in names.items()}


def _pictured(found: list[Example], run_dir: Path) -> list[tuple[Example, str]]:
    """Each example with its picture, which is empty where none was saved."""
    paths = [run_dir / FOLDER / f"{example.row}.png" for example in found]
    return [
        (example, data_url(path.read_bytes()) if path.is_file() else "")
        for example, path in zip(found, paths, strict=True)
    ]


def _natural_width(path: Path) -> int:
    """In CSS pixels, at which text has its own size; 0 where the file is no picture."""
    try:
        with Image.open(path) as image:
            dpi = float(image.info.get("dpi", (96, 96))[0])
            return round(image.width * 96 / dpi) if dpi > 0 else image.width
    except Exception:  # PIL raises a dozen kinds on damaged files
        return 0


def _figures(folder: Path) -> list[dict[str, Any]]:
    """The saved figures by the order in their files, embedded; those without one come last, by name."""
    found = [
        (read_caption(path), path, _natural_width(path)) for path in folder.glob("*.png") if path.is_file()
    ]
    found.sort(key=lambda one: (one[0].order, one[1].stem))
    return [
        {
            "name": as_text(path.stem).replace("_", " "),
            "caption": caption.text,
            # one that has room in a column needs no row of its own
            "wide": caption.wide and not 0 < width <= COLUMN,
            "plot": caption.plot,
            "width": width,
            "data": data_url(path.read_bytes()),
        }
        for caption, path, width in found
    ]
