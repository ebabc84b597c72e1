"""What the server answers, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.page.text import told_of
from osr_lightning.deploy.serve.limits import Limits
from osr_lightning.recogniser.examples import data_url, to_png
from osr_lightning.recogniser.explanation import Explanation as Why
from osr_lightning.recogniser.explanation import finite_value
from osr_lightning.recogniser.rows import Row, as_json, class_cells

if TYPE_CHECKING:
    from osr_lightning.deploy.serve.backend import Backend, Explanation, Pixels

MOST_CLASSES, MOST_SAMPLES = 20, 100  # more are no one's to read


def row_json(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    """A row as in ``osr predict --output FILE.jsonl``; JSON has no word for infinity and NaN but null."""
    return {name: finite_value(value) for name, value in as_json(row, columns).items()}


def explained(explanation: Explanation, pixels: Pixels, spec: DataSpec) -> dict[str, Any]:
    """What stands behind a row: probabilities, each sample's answer, the pixels as a PNG, and why."""
    names = class_cells(spec.classes)
    return {
        "probabilities": _likeliest(explanation.probabilities, names),
        "samples": None
        if explanation.samples is None
        else [_likeliest(sample, names, 1)[0] for sample in explanation.samples[:MOST_SAMPLES]],
        "pixels": data_url(to_png(pixels)),
        "why": None if explanation.why is None else _why(explanation.why, spec, names),
    }


def _why(why: Why, spec: DataSpec, names: Sequence[str]) -> dict[str, Any]:
    """The score's parts, nearest known images and map; names of files stay in the checkpoint."""
    shown = dict(zip(spec.classes, names, strict=True))
    told = why.to_json()
    return {
        "resembles": shown[why.resembles],
        "parts": told["parts"],
        "nearest": [
            {"class": shown[one.label], "distance": one.distance, "picture": data_url(to_png(one.thumbnail))}
            for one in why.nearest
        ],
        "no_nearest": told["no_nearest"],
        "map": None if why.map is None else {**told["map"], "picture": data_url(why.map.to_png())},
        "no_map": told["no_map"],
    }


def model(backend: Backend, limits: Limits) -> dict[str, Any]:
    """What is served."""
    return told_of(backend.recogniser) | {
        "samples": backend.num_samples,
        "columns": list(backend.columns),
        "limits": limits._asdict(),
    }


def _likeliest(
    probabilities: NDArray[np.float64], names: Sequence[str], most: int = MOST_CLASSES
) -> list[dict[str, Any]]:
    """The classes of the greatest probabilities; all of few classes are in their own order."""
    if len(probabilities) <= most:
        chosen = range(len(probabilities))
    else:
        chosen = np.argsort(-probabilities, kind="stable")[:most].tolist()
    return [{"class": names[k], "probability": float(probabilities[k])} for k in chosen]
