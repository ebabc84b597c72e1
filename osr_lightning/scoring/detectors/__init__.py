"""Fitted scores: features ``(B, D)`` and logits ``(B, K)`` -> score ``(B,)``, higher is more unknown.

Features are what the network's last linear layer sees and logits what it returns, in one pass without
dropout (``osr_lightning.models.features``). Each score is a module whose whole state lies in buffers: it is
saved with the weights, moves with the module, and loads into a fresh one. All is worked out in float64.

A new fitted score is one subclass of `Detector` and its name in `DetectorName` and `DETECTORS`. In the
formulas ``f`` is the feature vector, ``z`` the logits, ``N`` the number of training images.
"""

from __future__ import annotations

from osr_lightning.scoring.detectors.base import Detector, DetectorName
from osr_lightning.scoring.detectors.knn import KNN
from osr_lightning.scoring.detectors.mahalanobis import Mahalanobis, RelativeMahalanobis
from osr_lightning.scoring.detectors.openmax import OpenMax
from osr_lightning.scoring.detectors.vim import ViM

__all__ = [
    "DETECTORS",
    "KNN",
    "Detector",
    "DetectorName",
    "Mahalanobis",
    "OpenMax",
    "RelativeMahalanobis",
    "ViM",
]

DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector for detector in (Mahalanobis, RelativeMahalanobis, KNN, ViM, OpenMax)
}
