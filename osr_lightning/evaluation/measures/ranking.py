"""Measures of the score over all thresholds.

Scores are only ranked, so any range and infinite values will do; NaN has no rank and is the caller's to
refuse.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from osr_lightning.evaluation.acceptance import BoolArray, FloatArray, IntArray, acceptance, area
from osr_lightning.evaluation.measures.registry import measure
from osr_lightning.evaluation.outcomes import Outcomes


@measure(
    label="AUROC",
    format="rate",
    says="how often an unknown image outscores a known one, whatever the threshold",
)
def auroc(outcomes: Outcomes) -> float | None:
    """Area under the ROC curve in [0, 1]: how often an unknown image outscores a known one, ties half."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(outcomes.unknown, _ranks(outcomes.score)))


@measure(label="FPR95 (known)", format="percent", says="unknown images accepted when 95% of the known are")
def fpr95_known(outcomes: Outcomes) -> float | None:
    """Share of the unknown images accepted when 95% of the known are accepted, in [0, 1]; lower is better."""
    return _passing(outcomes.score[~outcomes.unknown], outcomes.score[outcomes.unknown])


@measure(label="OSCR", format="rate", says="the AUROC with wrongly classified known images counted as lost")
def oscr(outcomes: Outcomes) -> float | None:
    """Area under the open-set classification rate curve, in [0, 1] (Dhamija et al. 2018).

    The curve is the correct classification rate (known images accepted and rightly classified) against
    the false positive rate (unknown images accepted), over all thresholds. It is the AUROC in which
    every wrongly classified known image counts as lost.
    """
    counts = acceptance(outcomes.score, outcomes.unknown, outcomes.correct)
    return float(area(counts.unknown / counts.unknown[-1], counts.correct / counts.known[-1]))


@measure(label="OpenAUC", format="rate", says="defined otherwise, always equal to OSCR", same_as="oscr")
def openauc(outcomes: Outcomes) -> float | None:
    """OpenAUC in [0, 1] (Wang et al., NeurIPS 2022): the AUROC that asks for the right class as well.

    How often an unknown image outscores a known one, ties half, where a wrongly classified known image counts
    as above every unknown one.
    """
    ranks = _ranks(outcomes.score)
    lost = ~outcomes.unknown & ~outcomes.correct
    return auroc(replace(outcomes, score=np.where(lost, len(ranks), ranks).astype(np.float64)))


@measure(label="FPR95 (unknown)", format="percent", says="known images rejected when 95% of the unknown are")
def fpr95_unknown(outcomes: Outcomes) -> float | None:
    """Share of the known images rejected when 95% of the unknown are rejected, in [0, 1]; lower is better."""
    return _passing(-outcomes.score[outcomes.unknown], -outcomes.score[~outcomes.unknown])


@measure(label="detection error", format="percent", says="mean of the two error rates at the best threshold")
def detection_error(outcomes: Outcomes) -> float | None:
    """Least mean of the two error rates over all thresholds, in [0, 0.5] (Liang et al. 2018, ODIN)."""
    counts = acceptance(outcomes.score, outcomes.unknown, outcomes.correct)
    rejected_known = 1 - counts.known / counts.known[-1]
    return float(np.min(rejected_known + counts.unknown / counts.unknown[-1]) / 2)


@measure(label="AUPR known", format="rate", says="average precision of 'known', which depends on its share")
def aupr_known(outcomes: Outcomes) -> float | None:
    """Average precision with known as the positive class, in (0, 1]; a random score gives its share."""
    return _average_precision(~outcomes.unknown, -outcomes.score)


@measure(
    label="AUPR unknown", format="rate", says="average precision of 'unknown', which depends on its share"
)
def aupr_unknown(outcomes: Outcomes) -> float | None:
    """Average precision with unknown as the positive class, in (0, 1]; a random score gives its share."""
    return _average_precision(outcomes.unknown, outcomes.score)


@measure(label="AUPR known at 50%", format="rate", says="AUPR known, weighed to equal shares")
def aupr_known_50(outcomes: Outcomes) -> float | None:
    """`aupr_known`, weighed to 50% known, so that sets of different sizes compare."""
    return _average_precision(~outcomes.unknown, -outcomes.score, halved=True)


@measure(label="AUPR unknown at 50%", format="rate", says="AUPR unknown, weighed to equal shares")
def aupr_unknown_50(outcomes: Outcomes) -> float | None:
    """`aupr_unknown`, weighed to 50% unknown, so that sets of different sizes compare."""
    return _average_precision(outcomes.unknown, outcomes.score, halved=True)


def share95(count: int) -> int:
    """The smallest whole number of images that is at least 95% of ``count``, free of float rounding."""
    return -(-95 * count // 100)


def _passing(wanted: FloatArray, others: FloatArray) -> float:
    """Share of the others at or below the smallest score that at least 95% of the wanted do not exceed."""
    return float(np.mean(others <= np.sort(wanted)[share95(len(wanted)) - 1]))


def _average_precision(positive: BoolArray, score: FloatArray, halved: bool = False) -> float:
    from sklearn.metrics import average_precision_score

    weight = np.where(positive, 0.5 / np.mean(positive), 0.5 / np.mean(~positive)) if halved else None
    return float(average_precision_score(positive, _ranks(score), sample_weight=weight))


def _ranks(score: FloatArray) -> IntArray:
    # scikit-learn refuses infinite scores; ranks keep every comparison, ties included
    return np.asarray(np.unique(score, return_inverse=True)[1], np.int64)
