"""The per-image table of one test run: everything later steps need, and nothing else."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from osr_lightning.atomic_write import replacing
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.evaluation.retest import reading
from osr_lightning.recogniser.rows import COLUMNS, P_VALUE, file_of_cell, places_of_cells, write_rows
from osr_lightning.scoring.decision import is_unknown

CSV_NAME, NPZ_NAME = "predictions.csv", "evaluation.npz"
_NAMES = ("class_names", "source_names", "groups", "score_name", "threshold")
_MOST_NAMES = 2**26  # bytes of each of these: ten thousand names of 1,600 letters
_HEADER = 2**16  # bytes of an array's type and shape, at most
_PACKED = 2**27  # bytes of logits, above which packing them takes a minute and saves a tenth


@dataclass(frozen=True)
class PredictionTable:
    """One row per test image, in data order (``N`` rows, ``K`` known classes).

    Attributes:
        class_names: the ``K`` known classes' names.
        source_names: names of the image sets; ``source_names[0]`` is the known set.
        groups: group name -> names of its unknown sets (``{}`` where the YAML has no groups).
        score_name: the score that decides, a key of ``scores``.
        threshold: an image is called unknown when its score is greater than this.
        source: ``(N,)`` int64, index into ``source_names``.
        label: ``(N,)`` int64 in ``0 .. K``; ``K`` is unknown.
        predicted_class: ``(N,)`` int64 in ``0 .. K-1``, the arg max before any rejection.
        confidence: ``(N,)`` float64 in [0, 1], probability of the predicted class.
        nll: ``(N,)`` float64, negative log of the mean probability of the true class; NaN where unknown.
        scores: score name -> ``(N,)`` float64, higher means more unknown.
        logits: ``(N, K)`` float32, mean over the samples.
        files: names of the files the images were read from, empty where there is none; or none at all.
        p_value: ``(N,)`` float64 in (0, 1], the conformal one of the deciding score, NaN where there is none;
            None where no image has one.
    """

    class_names: tuple[str, ...]
    source_names: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    score_name: str
    threshold: float
    source: NDArray[np.int64]
    label: NDArray[np.int64]
    predicted_class: NDArray[np.int64]
    confidence: NDArray[np.float64]
    nll: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]
    logits: NDArray[np.float32]
    files: tuple[str, ...] = ()
    p_value: NDArray[np.float64] | None = None

    @property
    def num_classes(self) -> int:
        """``K``, the number of known classes."""
        return len(self.class_names)

    @property
    def score(self) -> NDArray[np.float64]:
        """``(N,)`` the deciding score."""
        return self.scores[self.score_name]

    @property
    def known(self) -> NDArray[np.bool_]:
        """``(N,)`` true where the image is of a known class."""
        return self.label < self.num_classes

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """``(N,)`` true where the image is called unknown."""
        return is_unknown(self.score, self.threshold)

    @property
    def prediction(self) -> NDArray[np.int64]:
        """``(N,)`` int64 in ``0 .. K``: the predicted class, or ``K`` where rejected."""
        return np.where(self.rejected, self.num_classes, self.predicted_class)

    @property
    def unknown_masks(self) -> dict[str, NDArray[np.bool_]]:
        """Unknown set -> ``(N,)`` true for the known images and that set's: what it is measured on."""
        names = enumerate(self.source_names[1:], start=1)
        return {name: self.known | (self.source == index) for index, name in names}

    def save(self, folder: Path) -> None:
        """Write ``predictions.csv`` and ``evaluation.npz``, from which `load` rebuilds the table.

        The CSV has one row per image in data order: ``COLUMNS``, one column per further score, and
        ``p_value``.
        Labels and predictions are class names, or ``unknown``; of names and files that a spreadsheet would
        take for formulas see `name_cell` and `path_cell`. Floats keep every digit.

        Args:
            folder: made where it is missing.
        """
        write_rows(
            folder / CSV_NAME,
            {
                "row": np.arange(len(self.label)),
                "source": self.source,
                "label": self.label,
                "prediction": self.prediction,
                "confidence": self.confidence,
                P_VALUE: np.full(len(self.label), np.nan) if self.p_value is None else self.p_value,
            },
            self.scores,
            classes=self.class_names,
            deciding=self.score_name,
            threshold=float(self.threshold),
            sources=self.source_names,
            files=self.files,
            errors="surrogateescape",
        )
        write_arrays = np.savez_compressed if self.logits.nbytes <= _PACKED else np.savez
        with replacing(folder / NPZ_NAME) as path:
            write_arrays(
                path,
                logits=self.logits,
                predicted_class=self.predicted_class,
                nll=self.nll,
                class_names=np.array(self.class_names, dtype=np.str_),
                source_names=np.array(self.source_names, dtype=np.str_),
                groups=np.array(json.dumps(self.groups)),
                score_name=np.array(self.score_name),
                threshold=np.array(self.threshold, dtype=np.float64),
            )

    @classmethod
    def load(cls, folder: Path) -> PredictionTable:
        """Rebuild the table that `save` wrote; nothing in the files is executed (no pickle).

        Args:
            folder: the run folder.

        Raises:
            UserError: if a file is missing or damaged.
        """
        with (
            reading(folder / CSV_NAME) as path,
            open(path, newline="", encoding="utf-8", errors="surrogateescape") as lines,
        ):
            header, *rows = csv.reader(lines, strict=True)
            if tuple(header[: len(COLUMNS)]) != COLUMNS:
                raise ValueError(f"its first columns are not {', '.join(COLUMNS)}")
            columns = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
            if columns["index"] != tuple(map(str, range(len(rows)))):
                raise ValueError("its rows are not in the order of the test")
            labels = columns["label"]
            confidence = np.array(columns["confidence"], dtype=np.float64)
            scores = {
                name: np.array(columns[name], dtype=np.float64)
                for name in ("score", *header[len(COLUMNS) :])
                if name != P_VALUE
            }
            p_value = None
            if any(columns.get(P_VALUE, ())):
                p_value = np.array([cell or "nan" for cell in columns[P_VALUE]], dtype=np.float64)
        # opened here because numpy leaves a damaged file open
        with (
            reading(folder / NPZ_NAME) as path,
            open(path, "rb") as file,
            np.load(file, allow_pickle=False) as arrays,
        ):
            _refuse_large(arrays.zip, _NAMES, _MOST_NAMES)
            class_names, source_names = (_names(arrays[name]) for name in ("class_names", "source_names"))
            _refuse_large(arrays.zip, ("predicted_class", "nll"), 8 * len(rows))
            _refuse_large(arrays.zip, ("logits",), 8 * len(rows) * len(class_names))
            sources, labels_of = places_of_cells(source_names), places_of_cells((*class_names, UNKNOWN))
            score_name = str(arrays["score_name"].item())
            table = cls(
                class_names=class_names,
                source_names=source_names,
                groups={name: tuple(sets) for name, sets in json.loads(str(arrays["groups"])).items()},
                score_name=score_name,
                threshold=float(arrays["threshold"].item()),
                source=np.array([sources[name] for name in columns["source"]], dtype=np.int64),
                label=np.array([labels_of[name] for name in labels], dtype=np.int64),
                predicted_class=arrays["predicted_class"],
                confidence=confidence,
                nll=arrays["nll"],
                scores={score_name if name == "score" else name: scores[name] for name in scores},
                logits=arrays["logits"],
                files=tuple(map(file_of_cell, columns["file"])) if any(columns["file"]) else (),
                p_value=p_value,
            )
            _refuse_misfits(table)
        return table


def _refuse_large(archive: ZipFile, names: Sequence[str], most: int) -> None:
    """Stop before an array is unpacked that no run can have written: a small file may unpack to any size."""
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in names and info.file_size > most + _HEADER:
            raise ValueError(
                f"{name} would unpack to {info.file_size:,} bytes, of at most {most + _HEADER:,}"
            )


def _names(array: NDArray[Any]) -> tuple[str, ...]:
    names = tuple(array.tolist())
    if array.dtype.kind != "U" or array.ndim != 1 or len(set(names)) < len(names):
        raise ValueError("its names are not text, or not different")
    return names


def _refuse_misfits(table: PredictionTable) -> None:
    """Stop where arrays do not fit the rows and names: they would fail later, or give other numbers."""
    images, classes = len(table.label), table.num_classes
    wanted: dict[str, tuple[NDArray[Any], str, tuple[int, ...]]] = {
        "predicted_class": (table.predicted_class, "iu", (images,)),
        "nll": (table.nll, "f", (images,)),
        "logits": (table.logits, "f", (images, classes)),
    }
    for name, (array, kind, shape) in wanted.items():
        if array.dtype.kind not in kind or array.shape != shape:
            raise ValueError(f"{name} is {array.dtype} of the shape {array.shape}, not of {shape}")
    if images and not 0 <= table.predicted_class.min() <= table.predicted_class.max() < classes:
        raise ValueError(f"predicted_class is not within 0 to {classes - 1}")
    if math.isnan(table.threshold) or any(
        np.isnan(values).any() for values in (table.confidence, *table.scores.values())
    ):
        raise ValueError("a score, a confidence or the threshold is not a number")
    if strangers := {name for sets in table.groups.values() for name in sets} - set(table.source_names[1:]):
        raise ValueError(f"a group has the set {min(map(str, strangers))!r}, which was not tested")
