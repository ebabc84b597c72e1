"""Exact measures of a test run, in float64: arrays -> one number.

Throughout, ``score`` is ``(N,)`` with higher meaning more unknown, ``unknown`` is ``(N,)`` bool, and
*unknown* is the positive class. A measure that its input leaves undefined (an empty set, or a set with
one class where two are needed) is ``None``, never NaN or 0. Scores are only ranked, so any range and
infinite values will do; NaN has no rank and is the caller's to refuse.
"""

from __future__ import annotations

import numpy as np

from osr_lightning.evaluation.acceptance import BoolArray, FloatArray, IntArray, acceptance, area


def auroc(score: FloatArray, unknown: BoolArray) -> float | None:
    """Area under the ROC curve in [0, 1]: how often an unknown image outscores a known one, ties half."""
    if not _two_classes(unknown):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(unknown, _ranks(score)))


def aupr_unknown(score: FloatArray, unknown: BoolArray, share: float | None = None) -> float | None:
    """Average precision with unknown as the positive class, in (0, 1]; a random score gives the share.

    Args:
        score: ``(N,)``.
        unknown: ``(N,)``.
        share: the share of unknown images to weigh the set to, in (0, 1), so that sets of different
            sizes compare; ``None`` takes the set as it is.

    Raises:
        ValueError: if ``share`` lies outside (0, 1).
    """
    if share is not None and not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    if not _two_classes(unknown):
        return None
    from sklearn.metrics import average_precision_score

    weight = None
    if share is not None:
        weight = np.where(unknown, share / np.mean(unknown), (1 - share) / np.mean(~unknown))
    return float(average_precision_score(unknown, _ranks(score), sample_weight=weight))


def aupr_known(score: FloatArray, unknown: BoolArray, share: float | None = None) -> float | None:
    """Average precision with *known* as the positive class; ``share`` is still the unknown images'."""
    return aupr_unknown(-score, ~unknown, None if share is None else 1 - share)


def fpr95_known(score: FloatArray, unknown: BoolArray) -> float | None:
    """Share of the unknown images accepted when 95% of the known are accepted, in [0, 1]; lower is better.

    The threshold is the smallest score that at least 95% of the known images do not exceed.
    """
    if not _two_classes(unknown):
        return None
    known = np.sort(score[~unknown])
    return float(np.mean(score[unknown] <= known[share95(len(known)) - 1]))


def fpr95_unknown(score: FloatArray, unknown: BoolArray) -> float | None:
    """Share of the known images rejected when 95% of the unknown are rejected, in [0, 1]; lower is better."""
    return fpr95_known(-score, ~unknown)


def share95(count: int) -> int:
    """The smallest whole number of images that is at least 95% of ``count``, free of float rounding."""
    return -(-95 * count // 100)


def detection_error(score: FloatArray, unknown: BoolArray) -> float | None:
    """Least mean of the two error rates over all thresholds, in [0, 0.5] (Liang et al. 2018, ODIN)."""
    if not _two_classes(unknown):
        return None
    counts = acceptance(score, unknown, ~unknown)
    rejected_known = 1 - counts.known / counts.known[-1]
    return float(np.min(rejected_known + counts.unknown / counts.unknown[-1]) / 2)


def oscr(score: FloatArray, unknown: BoolArray, correct: BoolArray) -> float | None:
    """Area under the open-set classification rate curve, in [0, 1] (Dhamija et al. 2018).

    The curve is the correct classification rate (known images accepted and rightly classified) against
    the false positive rate (unknown images accepted), over all thresholds. It is the AUROC in which
    every wrongly classified known image counts as lost.

    Args:
        score: ``(N,)``.
        unknown: ``(N,)``.
        correct: ``(N,)`` true where the predicted class is right; ignored for unknown images.
    """
    if not _two_classes(unknown):
        return None
    counts = acceptance(score, unknown, correct)
    return float(area(counts.unknown / counts.unknown[-1], counts.correct / counts.known[-1]))


def openauc(score: FloatArray, unknown: BoolArray, correct: BoolArray) -> float | None:
    """OpenAUC in [0, 1] (Wang et al., NeurIPS 2022): the AUROC that asks for the right class as well.

    How often an unknown image outscores a known one, ties half, where a wrongly classified known image counts
    as above every unknown one.

    Args:
        score: ``(N,)``.
        unknown: ``(N,)``.
        correct: ``(N,)`` true where the predicted class is right; ignored for unknown images.
    """
    ranks = _ranks(score)
    return auroc(np.where(~unknown & ~correct, len(ranks), ranks).astype(np.float64), unknown)


def risk_coverage(score: FloatArray, correct: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Share accepted and error rate among the accepted, accepting the lowest scores first.

    Images of equal score have no order: each carries its tie's mean error, the expectation over orders.

    Returns:
        coverage and risk, both ``(N,)`` in [0, 1].
    """
    _, group = np.unique(score, return_inverse=True)
    tie_error = np.bincount(group, weights=~correct) / np.maximum(np.bincount(group), 1)
    accepted = np.arange(1, len(score) + 1)
    return accepted / max(len(score), 1), np.cumsum(tie_error[np.sort(group)]) / accepted


def aurc(score: FloatArray, correct: BoolArray) -> float | None:
    """Area under the risk-coverage curve in [0, 1], lower is better (Geifman and El-Yaniv 2017).

    Args:
        score: ``(N,)`` of known images.
        correct: ``(N,)`` true where the predicted class is right.
    """
    return float(np.mean(risk_coverage(score, correct)[1])) if len(score) else None


def calibration_bins(
    confidence: FloatArray, correct: BoolArray, bins: int = 15
) -> tuple[IntArray, FloatArray, FloatArray]:
    """Sort images into equal-width bins ``(low, high]`` of confidence.

    Returns:
        count, mean confidence and accuracy per bin, each ``(bins,)``; the last two are 0 where the count is.
    """
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    filled = np.maximum(count, 1)
    mean_confidence = np.bincount(index, weights=confidence, minlength=bins) / filled
    return count, mean_confidence, np.bincount(index, weights=correct, minlength=bins) / filled


def ece(confidence: FloatArray, correct: BoolArray, bins: int = 15) -> float | None:
    """Expected calibration error in [0, 1]: ``sum_b n_b/N |accuracy_b - confidence_b|`` (Guo et al. 2017)."""
    if not len(confidence):
        return None
    count, mean_confidence, accuracy = calibration_bins(confidence, correct, bins)
    return float(count @ np.abs(accuracy - mean_confidence) / len(confidence))


def decisions(label: IntArray, prediction: IntArray, num_classes: int) -> dict[str, float | None]:
    """The measures of the decisions taken at one threshold.

    Args:
        label: ``(N,)`` in ``0 .. K``; ``K`` is unknown.
        prediction: ``(N,)`` in ``0 .. K``; a known image predicted ``K`` is wrong.
        num_classes: ``K``.

    Returns:
        ``known_accuracy``, ``unknown_accuracy`` and ``total_accuracy`` over K+1 classes;
        ``binary_accuracy``, ``balanced_accuracy``, ``precision``, ``recall`` and ``f1`` of known against
        unknown; ``macro_f1``, the mean F1 of those K+1 classes that occur as label or prediction; and
        ``binary_auroc``, the AUROC of the 0/1 decisions as scores, which the original notebook reported:
        it equals the balanced accuracy and says nothing of the other thresholds.
        All but the first two need both known and unknown images; precision needs a rejected one.
    """
    unknown, rejected = label == num_classes, prediction == num_classes
    right = label == prediction
    names = ("total_accuracy", "binary_accuracy", "balanced_accuracy", "precision", "recall", "f1")
    measures: dict[str, float | None] = {
        "known_accuracy": float(right[~unknown].mean()) if (~unknown).any() else None,
        "unknown_accuracy": float(right[unknown].mean()) if unknown.any() else None,
        **dict.fromkeys((*names, "macro_f1", "binary_auroc")),
    }
    if not _two_classes(unknown):
        return measures
    from sklearn.metrics import f1_score

    hits, false_alarms, misses = ((unknown & rejected), (~unknown & rejected), (unknown & ~rejected))
    tp, fp, fn = int(hits.sum()), int(false_alarms.sum()), int(misses.sum())
    balanced = (float(rejected[unknown].mean()) + float((~rejected[~unknown]).mean())) / 2
    return measures | {
        "total_accuracy": float(right.mean()),
        "binary_accuracy": float((unknown == rejected).mean()),
        "balanced_accuracy": balanced,
        "precision": tp / (tp + fp) if tp + fp else None,
        "recall": tp / (tp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "macro_f1": float(f1_score(label, prediction, average="macro", zero_division=0.0)),
        "binary_auroc": balanced,
    }


def _two_classes(unknown: BoolArray) -> bool:
    return bool(unknown.any() and not unknown.all())


def _ranks(score: FloatArray) -> IntArray:
    # scikit-learn refuses infinite scores; ranks keep every comparison, ties included
    return np.asarray(np.unique(score, return_inverse=True)[1], np.int64)
