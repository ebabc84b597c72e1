"""The mistakes that a test's score was surest of: which images they are, and their pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from osr_lightning.atomic_write import replacing
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.evaluation.acceptance import BoolArray, IntArray
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.images.pixels import to_picture

FOLDER = Path("figures") / "mistakes"  # in a run folder: ROW.png of each image in `examples`


class Example(NamedTuple):
    """One kind of mistake, and the image of which the score was surest.

    Attributes:
        kind: in words.
        mistakes: how many there are of it.
        images: that could have been one.
        row: of the image in the table.
        truth: its class, or its unknown set.
        answer: the class that it was taken for, or ``unknown``.
        score: of the image.
        file: that it was read from; empty where there is none.
    """

    kind: str
    mistakes: int
    images: int
    row: int
    truth: str
    answer: str
    score: float
    file: str


def confident_mistakes(table: PredictionTable, per_kind: int = 8) -> dict[str, IntArray]:
    """The rows of the worst mistakes: kind -> at most ``per_kind`` indices, worst first; no empty kinds."""
    return {f"{kind} ({which} scores)": rows[:per_kind] for kind, which, rows, _ in _kinds(table)}


def examples(table: PredictionTable) -> list[Example]:
    """Of each kind of mistake that there is the worst one."""
    names = (*table.class_names, UNKNOWN)
    found = []
    for kind, _, rows, images in _kinds(table):
        row = int(rows[0])
        found.append(
            Example(
                kind,
                len(rows),
                int(images.sum()),
                row,
                names[table.label[row]] if table.known[row] else table.source_names[table.source[row]],
                names[table.prediction[row]],
                float(table.score[row]),
                table.files[row] if table.files else "",
            )
        )
    return found


def save_pictures(
    table: PredictionTable, images: Callable[[IntArray], NDArray[np.uint8]], run_dir: Path
) -> list[Path]:
    """Write the pictures of `examples`, as they were before any preprocessing of the network.

    Args:
        table: the test run.
        images: rows ``(n,)`` -> their images ``(n, C, H, W)`` uint8, grey (C is 1) or RGB (3).
        run_dir: where to; see `FOLDER`.
    """
    rows = [example.row for example in examples(table)]
    paths = []
    for row, image in zip(rows, images(np.array(rows, dtype=np.int64)) if rows else (), strict=True):
        paths.append(run_dir / FOLDER / f"{row}.png")
        with replacing(paths[-1]) as partial:
            to_picture(image).save(partial, "PNG")
    return paths


def _kinds(table: PredictionTable) -> list[tuple[str, str, IntArray, BoolArray]]:
    """Kind, which scores are its worst, its rows worst first, and what could be of it; no empty kinds."""
    score, known, rejected = table.score, table.known, table.rejected
    wrong = known & ~rejected & (table.predicted_class != table.label)

    def ordered(mask: BoolArray, key: NDArray[np.float64]) -> IntArray:
        rows = np.flatnonzero(mask)
        return rows[np.argsort(key[rows], kind="stable")]

    kinds = [
        ("unknown, yet accepted", "lowest", ordered(~known & ~rejected, score), ~known),
        ("known, yet rejected", "highest", ordered(known & rejected, -score), known),
        ("known and accepted, but the wrong class", "lowest", ordered(wrong, score), known),
    ]
    return [kind for kind in kinds if len(kind[2])]
