"""How many images there are, for ``results.json`` and for people."""

from __future__ import annotations

from typing import Any

import torch

from osr_lightning.data.tables import Tables


def counts(tables: Tables) -> dict[str, Any]:
    """How many images each set that is loaded has, for ``results.json``."""
    known: dict[str, Any] = {"source": tables.known}
    for name, table in (("train", tables.train), ("validation", tables.val)):
        known[name] = None if table is None else len(table)
    by_source = [None] * len(tables.source_names)
    if tables.test is not None:
        by_source = torch.bincount(tables.test.sources, minlength=len(tables.source_names)).tolist()
    known["test"] = by_source[0]
    unknown = {
        name: {"source": source, "test": count}
        for (name, source), count in zip(tables.unknown.items(), by_source[1:], strict=True)
    }
    return {"known": known, "unknown": unknown}


def describe(tables: Tables) -> list[str]:
    """What is loaded, a line for the known set and one for the unknown ones."""
    found = counts(tables)
    parts = [found["known"][name] for name in ("train", "validation", "test")]
    numbers = "/".join("-" if count is None else f"{count:,}" for count in parts)
    classes, _, shape = str(tables.facts).rpartition(", ")
    lines = [f"known: {classes}, {numbers} train/val/test, {shape}"]
    sets = [f"{name} {one['test']:,}" for name, one in found["unknown"].items() if one["test"]]
    return [*lines, f"unknown: {', '.join(sets)}"] if sets else lines
