"""torchmetrics collections that the classifiers log."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryF1Score,
    BinaryPrecision,
    BinaryRecall,
    MulticlassAccuracy,
)
from torchmetrics.utilities import dim_zero_cat


class ScoreAUROC(Metric):
    """Area under the ROC curve of a raw score; unknown images are the positive class.

    The share of (unknown, known) pairs in which the unknown image has the higher score, ties counting
    half. Exact in float64 for scores of any range, where torchmetrics' ``BinaryAUROC`` passes a batch
    through a sigmoid as soon as one value lies outside [0, 1].
    """

    full_state_update = False
    higher_is_better = True
    scores: list[Tensor]
    unknown: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("unknown", default=[], dist_reduce_fx="cat")

    def update(self, score: Tensor, unknown: Tensor) -> None:
        """Add ``(B,)`` scores and whether each image is unknown."""
        self.scores.append(score.double())
        self.unknown.append(unknown.bool())

    def compute(self) -> Tensor:
        """The AUROC in [0, 1] as float64, NaN where one of the two classes is missing."""
        score, unknown = dim_zero_cat(self.scores), dim_zero_cat(self.unknown)
        distinct, inverse = torch.unique(score, return_inverse=True)
        positives = torch.bincount(inverse, weights=unknown.double(), minlength=len(distinct))
        negatives = torch.bincount(inverse, weights=(~unknown).double(), minlength=len(distinct))
        won = positives * (negatives.cumsum(0) - negatives / 2)
        return won.sum() / (positives.sum() * negatives.sum())


def decision_metrics(num_classes: int) -> MetricCollection:
    """Accuracies of (K+1)-class decisions; update with ``(B,)`` decisions and labels in ``0 .. K``.

    A rejected known image counts as wrong.
    """
    return MetricCollection(
        {
            "known_accuracy": MulticlassAccuracy(num_classes + 1, average="micro", ignore_index=num_classes),
            "total_accuracy": MulticlassAccuracy(num_classes + 1, average="micro"),
        },
        prefix="test/",
        compute_groups=False,
    )


def rejection_metrics() -> MetricCollection:
    """Rates of the known/unknown decision, unknown being positive; update with ``(B,)`` 0/1 tensors."""
    return MetricCollection(
        {
            "unknown_accuracy": BinaryRecall(),
            "binary_accuracy": BinaryAccuracy(),
            "balanced_accuracy": MulticlassAccuracy(2, average="macro"),
            "precision": BinaryPrecision(),
            "recall": BinaryRecall(),
            "f1": BinaryF1Score(),
        },
        prefix="test/",
        compute_groups=False,
    )
