"""The page of a review: one file with all that it shows, which loads nothing and sends nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osr_lightning.atomic_write import as_text
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.content_policy import own_sources
from osr_lightning.deploy.page.text import styled
from osr_lightning.deploy.review.groups import Groups
from osr_lightning.deploy.review.images import NEAR, Seen
from osr_lightning.recogniser.prediction import Deciding
from osr_lightning.recogniser.rows import name_cell, path_cell
from osr_lightning.scoring.p_values import p_values
from osr_lightning.scoring.sweep import Floats

_SMALL = 64  # pixels a side of images that are shown pixel by pixel
_LIKE = 2  # known classes that a group is compared with


def render(
    seen: Sequence[Seen],
    groups: Groups,
    spec: DataSpec,
    deciding: Deciding,
    about: str,
    notes: str = "",
) -> str:
    """The page's HTML.

    Args:
        seen: the unknown images, then known ones by falling score.
        groups: of the unknown ones.
        spec: of the known images.
        deciding: the score and its threshold.
        about: a sentence at its top: what was asked about which images.
        notes: another one, on images that are not shown; may be empty.
    """
    text = styled(Path(__file__).with_name("page.html"))
    policy = "; ".join([*own_sources(text), "img-src data:", "base-uri 'none'", "form-action 'none'"])
    content = _content(seen, groups, spec, deciding) | {"about": about, "notes": notes}
    # within a script only < can end it, and only as a part of a string
    written = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return text.replace("@POLICY@", policy, 1).replace("@DATA@", written, 1)


def _content(seen: Sequence[Seen], groups: Groups, spec: DataSpec, deciding: Deciding) -> dict[str, Any]:
    unknown = len(groups.labels)
    scores = np.array([one.image.score for one in seen])
    order = [*_order(groups, scores[:unknown]), *range(unknown, len(seen))]
    p_value = p_values(deciding.record, scores)
    number = np.append(groups.labels, np.full(len(seen) - unknown, -1))
    images = [_image(seen[row], int(number[row]), float(p_value[row])) for row in order]
    place = {row: at for at, row in enumerate(order)}
    nearest = np.argsort(scores[:unknown], kind="stable")[:NEAR]
    content = {
        "classes": list(spec.classes),
        "small": spec.image_size <= _SMALL,
        "threshold": deciding.value,
        "threshold_cell": repr(deciding.value),
        "groups": [
            _group(seen, np.flatnonzero(groups.labels == at), c) for at, c in enumerate(groups.coherence)
        ],
        "accepted": [place[int(row)] for row in nearest],
    }
    # what a person did is kept by the browser for a page of these images in these groups
    told = json.dumps([content, [[one["cell"], one["group"], one["known"]] for one in images]])
    digest = hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    return content | {"images": images, "digest": digest}


def _order(groups: Groups, scores: Floats) -> list[int]:
    """Group by group, the most typical images first, then those in none, the lowest score first."""
    alone = groups.labels < 0
    order = np.lexsort((np.where(alone, scores, -groups.typical), groups.labels, alone))
    return [int(row) for row in order]


def _image(one: Seen, group: int, p_value: float) -> dict[str, Any]:
    like = int(one.probabilities.argmax())
    cell = path_cell(one.image.path)
    return {
        "file": as_text(one.image.path),
        "cell": name_cell(cell),
        "score": one.image.score,
        "p": None if math.isnan(p_value) else p_value,
        "known": one.image.known,
        "group": group,
        "like": like,
        "probability": float(one.probabilities[like]),
        "thumbnail": base64.b64encode(one.thumbnail).decode(),
    }


def _group(seen: Sequence[Seen], rows: NDArray[np.intp], coherence: float) -> dict[str, Any]:
    chances = np.stack([seen[row].probabilities for row in rows])
    scores = np.array([seen[row].image.score for row in rows])
    share = np.bincount(chances.argmax(1), minlength=chances.shape[1]) / len(rows)
    mean = chances.mean(0)
    likeliest = np.lexsort((-mean, -share))[:_LIKE]
    return {
        "coherence": coherence,
        "low": float(scores.min()),
        "median": float(np.median(scores)),
        "high": float(scores.max()),
        "like": [
            {"class": int(k), "share": float(share[k]), "probability": float(mean[k])}
            for k in likeliest
            if share[k] > 0
        ],
    }
