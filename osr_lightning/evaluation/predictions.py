"""Rows of decisions -> the table that `predict` writes, of the same columns as a test's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from torch import Tensor

from osr_lightning.answers import COLUMNS
from osr_lightning.evaluation.table import CSV_NAME
from osr_lightning.facts import UNKNOWN
from osr_lightning.recogniser import Recogniser
from osr_lightning.writing import replacing_rows


def write_predictions(
    folder: Path,
    rows: dict[str, Tensor],
    recogniser: Recogniser,
    datamodule: Any,  # noqa: ANN401 - any datamodule whose batches are ours
) -> Path:
    """Write one row per image to ``folder/predictions.csv``.

    Args:
        folder: the run folder, made where missing.
        rows: gathered results of the prediction, ``(N, ...)`` each.
        recogniser: whose score and threshold decided.
        datamodule: names the files and the labels, where it knows them.

    Returns:
        The file's path. Its columns are ``COLUMNS``, then one per further score.
    """
    threshold = recogniser.threshold
    names = [*recogniser.facts.classes, UNKNOWN]
    files = getattr(getattr(datamodule, "predict_set", None), "files", ())
    tables = getattr(datamodule, "tables", None)
    sources: tuple[str, ...] = ()
    if tables is not None:
        selection = tables.selection
        sources = (selection.predict,) if selection.predict else selection.source_names
    further = [name for name in rows if name.startswith("score/") and name != f"score/{threshold.score}"]
    keys = ("row", "source", "label", "prediction", "confidence", f"score/{threshold.score}", *further)
    path = folder / CSV_NAME
    with replacing_rows(path, "backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *(name.removeprefix("score/") for name in further)])
        for row, source, label, prediction, confidence, score, *others in zip(
            *(rows[key].tolist() for key in keys), strict=True
        ):
            start = [
                row,
                files[row] if files else "",
                sources[source] if sources else "",
                names[label] if 0 <= label < len(names) else "",
                names[prediction],
            ]
            writer.writerow([*start, confidence, score, threshold.value, "", *others])
    return path
