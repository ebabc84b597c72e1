"""What would become of a class that was never met: each known class is left out once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from osr_lightning.evaluation.acceptance import FloatArray
from osr_lightning.evaluation.measures.ranking import auroc
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.quantile import conformal_rank, known_quantile
from osr_lightning.training.cross_calibration import (
    KnownFeatures,
    choose_decay,
    copy_with,
    describe_part,
    fit_part,
)

_FEWEST = 3  # classes: two are left
_MOST, _MOST_CLASSES = 2000, 20  # images and classes that are enough
_ABOVE = 2  # images of the others above the threshold, at least
_NAMED = 3  # classes that a left-out one is mistaken for


def leave_classes_out(
    recogniser: Recogniser,
    known: KnownFeatures,
    alpha: float,
    decay: float | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Any] | None:
    """Leave out each known class, and see what a fit to the others makes of its images.

    In a round one fold chooses the threshold, the next one gives references, and the others are fitted to;
    there are as many rounds as it takes for two images above the threshold. A few thousand images are
    enough, and of many classes some.

    Args:
        recogniser: whose network is a frozen backbone; it stays as it is.
        known: the images.
        alpha: share in (0, 1) of the other classes' images that may be rejected.
        decay: of half the squared weights; chosen by the loss of one fold if not given.
        class_weights: ``(K,)`` in the loss; all 1 if not given.

    Returns:
        ``rejected`` and ``auroc``, means over classes; and for each of ``classes`` its ``count``,
        ``rejected``, ``auroc`` against the other classes' images that chose the threshold, and
        ``mistaken_for``, the shares of its images that are accepted as one of the other classes, the most
        frequent first. None where there are fewer than three classes, or too few images for alpha.
    """
    names = recogniser.spec.classes
    if len(names) < _FEWEST:
        return None
    if len(known.labels) > _MOST:
        drawn = torch.randperm(len(known.labels), generator=torch.Generator().manual_seed(0))[:_MOST]
        known = known.where(drawn.to(known.labels.device))
    if decay is None:
        decay = choose_decay(recogniser, known, [known.folds == 0], class_weights)
    found: dict[str, Any] = {}
    chosen = torch.linspace(0, len(names) - 1, min(len(names), _MOST_CLASSES)).round().long().tolist()
    for label in chosen:
        numbers = _leave_out(recogniser, known, label, alpha, decay, class_weights)
        if numbers is not None:
            found[names[label]] = numbers
    if not found:
        return None
    means = {key: float(np.mean([one[key] for one in found.values()])) for key in ("rejected", "auroc")}
    return {**means, "classes": found}


def _leave_out(
    recogniser: Recogniser,
    known: KnownFeatures,
    label: int,
    alpha: float,
    decay: float,
    class_weights: Tensor | None,
) -> dict[str, Any] | None:
    """What becomes of one class; None where it has no image, or the others too few."""
    others, unmet = known.where(known.labels != label), known.where(known.labels == label)
    folds = known.num_folds
    sizes = torch.bincount(others.folds, minlength=folds).cumsum(0)
    rounds = min(folds, 1 + int((sizes * alpha < _ABOVE).sum()))
    if not len(unmet.labels) or conformal_rank(int(sizes[rounds - 1]), alpha) > int(sizes[rounds - 1]):
        return None
    others = others._replace(labels=others.labels - (others.labels > label).long())
    weights = class_weights
    if weights is not None:
        weights = torch.cat([weights[:label], weights[label + 1 :]])
    names = recogniser.spec.classes
    work = copy_with(recogniser, names[:label] + names[label + 1 :])
    scores, predicted = [], []
    for turn in range(rounds):
        judges, referees = others.folds == turn, others.folds == (turn + 1) % folds
        fit_part(work, others.where(~judges & ~referees), others.where(referees), decay, weights)
        rows = [describe_part(work, part.features) for part in (others.where(judges), unmet)]
        scores.append([one[f"score/{work.threshold.score}"].cpu().numpy() for one in rows])
        predicted.append(rows[1]["predicted_class"])
    threshold = known_quantile(np.concatenate([mine for mine, _ in scores]), alpha)
    rejected = [is_unknown(theirs, threshold) for _, theirs in scores]
    accepted = torch.cat(predicted).cpu().numpy()[~np.concatenate(rejected)]
    counts = np.bincount(accepted, minlength=work.spec.num_classes) / (rounds * len(unmet.labels))
    order = [place for place in np.argsort(-counts, kind="stable").tolist() if counts[place]]
    return {
        "count": len(unmet.labels),
        "rejected": float(np.mean(rejected)),
        "auroc": float(np.mean([_auroc(mine, theirs) for mine, theirs in scores])),
        "mistaken_for": {work.spec.classes[place]: float(counts[place]) for place in order[:_NAMED]},
    }


def _auroc(known: FloatArray, unknown: FloatArray) -> float:
    labels = np.repeat([0, 1], [len(known), len(unknown)])
    none = np.zeros(len(labels), bool)
    found = auroc(Outcomes(labels, labels, np.concatenate([known, unknown]), none, 1))
    assert found is not None
    return found
