"""How many images there are, for ``results.json`` and for people."""

from __future__ import annotations

from typing import Any

import torch

from osr_lightning.data.image_table import ImageTables
from osr_lightning.errors import one_line

FEW, UNEVEN = 20, 5  # training images of a class; times as many in another


def counts(tables: ImageTables) -> dict[str, Any]:
    """How many images each set that is loaded has, for ``results.json``."""
    known: dict[str, Any] = {"source": tables.options["known"]}
    for name, table in (("train", tables.train), ("validation", tables.val)):
        known[name] = None if table is None else len(table)
    by_source = [None] * len(tables.source_names)
    if tables.test is not None:
        by_source = torch.bincount(tables.test.sources, minlength=len(tables.source_names)).tolist()
    known["test"] = by_source[0]
    unknown = {
        name: {"source": source, "test": count}
        for (name, source), count in zip(tables.sets.items(), by_source[1:], strict=True)
    }
    return {"known": known, "unknown": unknown}


def image_lines(tables: ImageTables) -> list[str]:
    """What is loaded, a line for the known set and one for the unknown ones."""
    found = counts(tables)
    parts = [found["known"][name] for name in ("train", "validation", "test")]
    numbers = "/".join("-" if count is None else f"{count:,}" for count in parts)
    classes, _, shape = str(tables.spec).rpartition(", ")
    lines = [f"known: {classes}, {numbers} train/val/test, {shape}"]
    sets = [f"{name} {one['test']:,}" for name, one in found["unknown"].items() if one["test"]]
    if sets:
        lines.append(f"unknown: {', '.join(sets)}")
    lines += [f"note: {note}" for note in tables.notes]
    lines += [f"left out of {source}: {'; '.join(phrases)}" for source, phrases in tables.left_out.items()]
    return [one_line(line) for line in lines + _worries(tables)]


def _worries(tables: ImageTables) -> list[str]:
    """What the numbers of training images per class should make a user think of."""
    if tables.train is None:
        return []
    counts = torch.bincount(tables.train.labels, minlength=tables.spec.num_classes).tolist()
    named = sorted(zip(counts, tables.spec.classes, strict=True))
    lines = []
    if few := [f"{name} {count}" for count, name in named if count < FEW]:
        shown = ", ".join(few[:5]) + ", …" * (len(few) > 5)
        whose = f"{len(few)} classes have" if len(few) > 1 else "a class has"
        lines.append(f"warning: {whose} fewer than {FEW} training images ({shown})")
    if named[-1][0] >= UNEVEN * named[0][0]:
        lines.append(
            f"warning: classes are uneven, from {named[0][1]} with {named[0][0]} to {named[-1][1]} with "
            f"{named[-1][0]} training images; --model.balance_classes true lets them weigh the same"
        )
    return lines
