"""Measures of the decisions at the threshold in use."""

from __future__ import annotations

from osr_lightning.evaluation.measures.registry import measure
from osr_lightning.evaluation.outcomes import Outcomes


@measure(
    label="known accuracy", format="percent", says="known images accepted with the right class", needs="known"
)
def known_accuracy(outcomes: Outcomes) -> float | None:
    """A known image that is rejected is wrong."""
    return float((outcomes.prediction == outcomes.label)[~outcomes.unknown].mean())


@measure(label="unknown accuracy", format="percent", says="unknown images rejected", needs="unknown")
def unknown_accuracy(outcomes: Outcomes) -> float | None:
    """Share of the unknown images rejected."""
    return float(outcomes.rejected[outcomes.unknown].mean())


@measure(label="total accuracy", format="percent", says="all images with the right answer")
def total_accuracy(outcomes: Outcomes) -> float | None:
    """Accuracy over K+1 classes, unknown being one."""
    return float((outcomes.prediction == outcomes.label).mean())


@measure(label="binary accuracy", format="percent", says="right in known or unknown, whichever the class")
def binary_accuracy(outcomes: Outcomes) -> float | None:
    """Share of the images whose decision, known or unknown, is right."""
    return float((outcomes.unknown == outcomes.rejected).mean())


@measure(label="balanced accuracy", format="percent", says="the same, with known and unknown weighing alike")
def balanced_accuracy(outcomes: Outcomes) -> float | None:
    """Mean of the share of unknown images rejected and that of known images accepted."""
    unknown, rejected = outcomes.unknown, outcomes.rejected
    return (float(rejected[unknown].mean()) + float((~rejected[~unknown]).mean())) / 2


@measure(label="precision", format="percent", says="unknown among the rejected images")
def precision(outcomes: Outcomes) -> float | None:
    """Undefined where nothing is rejected."""
    hits, false_alarms, _ = _errors(outcomes)
    return hits / (hits + false_alarms) if hits + false_alarms else None


@measure(
    label="recall",
    format="percent",
    says="the unknown accuracy by its other name",
    same_as="unknown_accuracy",
)
def recall(outcomes: Outcomes) -> float | None:
    """Share of the unknown images rejected."""
    return unknown_accuracy(outcomes)


@measure(label="F1", format="rate", says="harmonic mean of precision and unknown accuracy")
def f1(outcomes: Outcomes) -> float | None:
    """F1 of known against unknown."""
    hits, false_alarms, misses = _errors(outcomes)
    return 2 * hits / (2 * hits + false_alarms + misses)


@measure(label="macro F1", format="rate", says="mean F1 of all classes, unknown being one")
def macro_f1(outcomes: Outcomes) -> float | None:
    """Mean F1 of those K+1 classes that occur as label or prediction."""
    from sklearn.metrics import f1_score

    return float(f1_score(outcomes.label, outcomes.prediction, average="macro", zero_division=0.0))


@measure(
    label="binary AUROC",
    format="rate",
    says="of the 0/1 decisions: the balanced accuracy once more",
    same_as="balanced_accuracy",
)
def binary_auroc(outcomes: Outcomes) -> float | None:
    """The AUROC of the decisions as scores, which the original notebook reported.

    It equals the balanced accuracy and says nothing of the other thresholds.
    """
    return balanced_accuracy(outcomes)


def _errors(outcomes: Outcomes) -> tuple[int, int, int]:
    """Unknown images rejected, known images rejected, unknown images accepted."""
    unknown, rejected = outcomes.unknown, outcomes.rejected
    return int((unknown & rejected).sum()), int((~unknown & rejected).sum()), int((unknown & ~rejected).sum())
