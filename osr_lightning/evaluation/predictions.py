"""The table that `osr predict` writes."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from osr_lightning.models.open_set import OpenSetClassifier


def write_predictions(
    folder: Path,
    rows: dict[str, Tensor],
    model: OpenSetClassifier,
    datamodule: Any,  # noqa: ANN401 - any datamodule whose batches are ours
) -> Path:
    """Write one row per image to ``folder/predictions.csv``.

    Args:
        folder: the run folder, made where missing.
        rows: gathered results of the prediction, ``(N, ...)`` each.
        model: whose score and threshold decided.
        datamodule: names the files, where the images came from a folder.

    Returns:
        The file's path. Its columns are ``index, file, prediction`` (a class in ``0 .. K-1``, or ``K`` for
        unknown), ``confidence, score, threshold``, then one column per further score.
    """
    files = getattr(datamodule, "predict_files", ())
    further = [name for name in rows if name.startswith("score/") and name != f"score/{model.score_name}"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.csv"
    threshold = model.threshold.item()
    columns = [
        rows[n].tolist() for n in ("row", "prediction", "confidence", f"score/{model.score_name}", *further)
    ]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        header = ["index", "file", "prediction", "confidence", "score", "threshold"]
        writer.writerow(header + [name.removeprefix("score/") for name in further])
        for index, prediction, confidence, score, *others in zip(*columns, strict=True):
            name = files[index] if files else ""
            writer.writerow([index, name, prediction, confidence, score, threshold, *others])
    return path
