"""What ``osr explain`` writes: a page of many images, and the same as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import one_line
from osr_lightning.evaluation.report.render import render
from osr_lightning.images.pixels import picture_file, to_picture
from osr_lightning.recogniser.examples import data_url, to_png
from osr_lightning.recogniser.explanation import Explanation, Part, share_in_words
from osr_lightning.recogniser.rows import class_cells

_DECADES = 4  # of p that a bar shows: 1 in 10,000 fills it
_QUALITY = 85  # of the pictures' JPEG
_SMALL = 64  # pixels a side, of which a PNG is small enough


class Explained(NamedTuple):
    """One image as the page shows it.

    Attributes:
        file: its name.
        why: None where it cannot be read.
        error: the reason for that.
    """

    file: str
    why: Explanation | None
    error: str = ""


def to_json(images: Sequence[Explained], classes: Sequence[str], checkpoint: str) -> dict[str, Any]:
    """What programs read."""
    return {
        "checkpoint": checkpoint,
        "classes": list(classes),
        "images": [
            {"file": one.file, "error": one.error}
            if one.why is None
            else one.why.to_json() | {"file": one.file, "error": ""}
            for one in images
        ],
    }


def to_page(images: Sequence[Explained], classes: Sequence[str], checkpoint: str) -> str:
    """An HTML page that needs nothing but itself; text is escaped."""
    names = dict(zip(classes, class_cells(classes), strict=True))
    explained = [one.why for one in images if one.why is not None]
    return render(
        "explain.html.j2",
        checkpoint=one_line(checkpoint),
        images=[_shown(one, names) for one in images],
        count=len(images),
        unknown=sum(why.prediction.unknown for why in explained),
        score=explained[0].score if explained else "",
        threshold=explained[0].prediction.threshold if explained else None,
        no_nearest=next((why.no_nearest for why in explained), ""),
        no_map=next((why.no_map for why in explained if why.no_map), ""),
        maps=any(why.map is not None for why in explained),
    )


def _shown(one: Explained, names: dict[str, str]) -> dict[str, Any]:
    if one.why is None:
        return {"file": one_line(one.file), "error": one.error}
    why = one.why
    return {
        "file": one_line(one.file),
        "prediction": names.get(why.prediction.label, why.prediction.label),
        "unknown": why.prediction.unknown,
        "resembles": names[why.resembles],
        "confidence": why.prediction.confidence,
        "score": why.prediction.score,
        "threshold": why.prediction.threshold,
        "verdict": verdict(why),
        "parts": [_bar(part, why.prediction.score) for part in why.parts],
        "picture": picture(why.pixels),
        "overlay": "" if why.map is None else data_url(why.map.to_png()),
        "small": why.pixels.shape[-1] <= _SMALL,
        "nearest": [
            {
                "label": names[near.label],
                "file": one_line(near.file),
                "distance": near.distance,
                "picture": picture(near.thumbnail),
            }
            for near in why.nearest
        ],
    }


def verdict(why: Explanation) -> str:
    """How unusual the image is, and what most, in a sentence or two."""
    p = why.prediction.p_value
    told = "" if p is None else f"As odd as this are {share_in_words(p)}. "
    oddest = why.oddest
    if sum(part.p is not None for part in why.parts) > 1 and oddest.p is not None:
        told += f"Most unusual is the {oddest.says}: as large in {share_in_words(oddest.p)}."
    return told.strip()


def _bar(part: Part, score: float) -> dict[str, Any]:
    share = None if part.p is None else min(1.0, -math.log10(max(part.p, 1e-300)) / _DECADES)
    return {
        "says": part.says,
        "width": 0 if share is None else round(100 * share, 1),
        "p": "" if part.p is None else share_in_words(part.p),
        "statistic": part.statistic,
        "weight": part.weight,
        "contribution": part.contribution,
        "share": part.contribution / score if score > 0 else None,
    }


def picture(pixels: NDArray[np.uint8]) -> str:
    """``(C, H, W)`` as a data URL: small ones exact, larger ones as JPEG."""
    if max(pixels.shape[1:]) <= _SMALL:
        return data_url(to_png(pixels))
    return data_url(picture_file(to_picture(pixels), "JPEG", quality=_QUALITY), "jpeg")
