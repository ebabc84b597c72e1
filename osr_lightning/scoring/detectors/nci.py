"""Nearness to the weights of the predicted class."""

from __future__ import annotations

import math

from torch import Tensor

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector, Known

_SHORT = 1e-12  # the shortest distance


class NCI(Detector):
    """``-w_k' (f - m) / ||f - m|| - alpha ||f||_1``, any real number.

    ``k`` is the class that is predicted, ``w_k`` its row of the last layer's weight, ``m`` the mean of the
    training features: in a trained network known features gather about their class's weights, and unknown
    images have short ones.
    Liu and Qin, Detecting Out-of-Distribution through the Lens of Neural Collapse, CVPR 2025.

    Args:
        alpha: 0 or above. The authors choose it by unknown images, from 0.0001 to 0.1.
    """

    name = "nci"
    state = ("mean", "weight")
    fits_probability = False
    mean: Tensor  # (D,)
    weight: Tensor  # (K, D)

    def __init__(self, alpha: float = 0.001) -> None:
        if not 0 <= alpha < math.inf:
            raise UserError(f"alpha must be 0 or above, got {alpha}.")
        super().__init__()
        self.alpha = alpha

    def _fit(self, known: Known) -> Buffers:
        features = known.seen[PENULTIMATE]
        return {"mean": features.mean(0), "weight": known.layer.weight.detach().to(features)}

    def _score(self, seen: Activations) -> Tensor:
        features = seen[PENULTIMATE]
        centered = features - self.mean
        along = (self.weight[seen[LOGITS].argmax(1)] * centered).sum(1)
        nearness = along / centered.norm(dim=1).clamp(min=_SHORT)
        score: Tensor = -nearness - self.alpha * features.abs().sum(1)
        return score
