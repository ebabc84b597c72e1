"""torchmetrics that the classifiers log of each epoch."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy


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
