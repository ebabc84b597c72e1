"""torchmetrics that the classifiers log."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
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


class EpochMetrics(nn.Module):
    """Loss and accuracy of an epoch over known images, each image weighing the same.

    Args:
        num_classes: ``K``.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.loss, self.accuracy = MeanMetric(), MulticlassAccuracy(num_classes, average="micro")

    def update(self, loss: Tensor, sizes: Tensor | None, predicted: Tensor, label: Tensor) -> None:
        """Add losses ``(n,)``, each the mean of ``sizes`` images, and classes ``(B,)`` in ``0 .. K-1``."""
        self.loss.update(loss, 1.0 if sizes is None else sizes)
        self.accuracy.update(predicted, label)


class OpenSetMetrics(nn.Module):
    """Accuracy on known, unknown and all images, the rates of known against unknown, and the score's AUROC.

    Args:
        num_classes: ``K``.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        # of K + 1 classes: a rejected known image counts as wrong
        self.decisions = MetricCollection(
            {
                "known_accuracy": MulticlassAccuracy(
                    num_classes + 1, average="micro", ignore_index=num_classes
                ),
                "total_accuracy": MulticlassAccuracy(num_classes + 1, average="micro"),
            },
            prefix="test/",
            compute_groups=False,
        )
        # of known against unknown, unknown being positive
        self.rejections = MetricCollection(
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
        self.auroc = ScoreAUROC()

    def update(self, predicted: Tensor, rejected: Tensor, score: Tensor, label: Tensor) -> None:
        """Add ``(B,)`` classes in ``0 .. K-1``, rejections, scores, and labels in ``0 .. K``."""
        unknown = label == self.num_classes
        self.decisions.update(predicted.where(~rejected, self.num_classes), label)
        self.rejections.update(rejected.int(), unknown.int())
        self.auroc.update(score, unknown)

    def compute(self) -> dict[str, Tensor]:
        """Name -> value, for what the images at hand define."""
        auroc = self.auroc.compute()
        metrics = {**self.decisions.compute(), "test/auroc": auroc}
        if not auroc.isnan():  # both known and unknown images are present
            metrics |= self.rejections.compute()
        return {name: value.float() for name, value in metrics.items() if not value.isnan()}

    def reset(self) -> None:
        """Forget all images."""
        for metric in (self.decisions, self.rejections, self.auroc):
            metric.reset()
