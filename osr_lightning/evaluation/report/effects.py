"""What the threshold did: to the known images, to each unknown set, and to each class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from osr_lightning.evaluation.acceptance import BoolArray
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.scoring.calibration import FEW, MANY

NAMED = 2  # classes that a set's accepted images are said to be taken for


class Effect(NamedTuple):
    """The threshold's effect on one set of images.

    Attributes:
        name: of the set.
        kind: known or unknown.
        images: how many there are.
        right: how many are accepted with the right class, or rejected where they are unknown.
        rejected: share of them that is called unknown; None without any.
        taken_for: the classes that accepted unknown images are given most often, with their shares of these;
            empty without any.
        verdict: the effect in words; empty without images.
    """

    name: str
    kind: str
    images: int
    right: int
    rejected: float | None
    taken_for: str
    verdict: str


class ClassEffect(NamedTuple):
    """The threshold's effect on one known class.

    Attributes:
        right: share of its images accepted with that class; None without images.
        mistaken: the wrong class that they are given most often, before any is rejected, with its share of
            the errors; empty without any.
    """

    right: float | None
    mistaken: str


def effects(table: PredictionTable) -> list[Effect]:
    """One row for the known images, then one for each unknown set.

    Args:
        table: the test run.
    """
    known = float(table.rejected[table.known].mean()) if table.known.any() else None
    rows = []
    for index, name in enumerate(table.source_names):
        mask = table.source == index
        rejected = float(table.rejected[mask].mean()) if mask.any() else None
        right = int((table.prediction == table.label)[mask].sum())
        wrong = mask & table.known & ~table.rejected & (table.predicted_class != table.label)
        told = (
            _known_verdict(rejected, wrong.sum() / max(1, mask.sum()))
            if index == 0
            else _unknown_verdict(rejected, known)
        )
        kind = "unknown" if index else "known"
        taken_for = _most_often(table, mask & ~table.rejected, NAMED, "accepted") if index else ""
        rows.append(Effect(name, kind, int(mask.sum()), right, rejected, taken_for, told))
    return rows


def class_effects(table: PredictionTable) -> dict[str, ClassEffect]:
    """Class name -> what became of its images.

    Args:
        table: the test run.
    """
    found = {}
    for label, name in enumerate(table.class_names):
        mine = table.label == label
        right = float((table.prediction[mine] == label).mean()) if mine.any() else None
        found[name] = ClassEffect(
            right, _most_often(table, mine & (table.predicted_class != label), 1, "errors")
        )
    return found


def _all(share: float) -> str:
    return "all" if share == 1 else "nearly all"


def _known_verdict(rejected: float | None, wrong: float) -> str:
    if rejected is None:
        return ""
    if rejected >= 1 - FEW:
        return f"{_all(rejected)} are rejected: at this threshold the classifier knows nothing"
    if rejected > MANY:
        return "most are rejected: the threshold is too low"
    told = f"{_all(1 - rejected)} are accepted" if rejected <= FEW else "most are accepted"
    return f"{told}, {wrong:.0%} with a wrong class" if wrong > FEW else told


def _unknown_verdict(rejected: float | None, known: float | None) -> str:
    if rejected is None:
        return ""
    if rejected >= 1 - FEW:
        return f"{_all(rejected)} are rejected"
    if rejected < FEW:
        return f"{'nearly ' * (rejected > 0)}none are rejected: they pass for known images"
    if known is not None and rejected <= known:
        most = "" if rejected > MANY else ": they pass for known images"
        return f"rejected no more often than known images{most}"
    return "most are rejected" if rejected > MANY else "most are accepted: they pass for known images"


def _most_often(table: PredictionTable, mask: BoolArray, most: int, what: str) -> str:
    """The most frequent predicted classes of some images by name, with their shares of what these are."""
    counts = np.bincount(table.predicted_class[mask], minlength=table.num_classes)
    ordered = np.argsort(-counts, kind="stable")[:most]
    total = int(counts.sum())
    shares = ", ".join(f"{table.class_names[i]}: {counts[i] / total:.0%}" for i in ordered if counts[i])
    return f"{shares} of {total:,} {what if total > 1 else what.removesuffix('s')}" if total else ""
