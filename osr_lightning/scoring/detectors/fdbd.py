"""Distance to the decision boundaries."""

from __future__ import annotations

import torch
from torch import Tensor

from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector, Known

_SHORT = 1e-12  # the shortest distance


class FDBD(Detector):
    """``-1/(K - 1) sum_{c != k} (z_k - z_c) / (||w_k - w_c|| ||f - m||)``, 0 or less.

    ``k`` is the class that is predicted, ``w`` the rows of the last layer's weight, ``m`` the mean of the
    training features: the mean distance from ``f`` to the boundaries between ``k`` and the other classes, of
    the distance to ``m``. Known images lie further from them.
    Liu and Qin, Fast Decision Boundary based Out-of-Distribution Detector, ICML 2024.

    Deviation: distances that are divided by are at least 1e-12, for classes of the same weights.
    """

    name = "fdbd"
    state = ("mean", "between")
    fits_probability = False
    mean: Tensor  # (D,)
    between: Tensor  # (K, K), distances between classes' weights

    def _fit(self, known: Known) -> Buffers:
        features = known.seen[PENULTIMATE]
        weight = known.layer.weight.detach().to(features)
        between = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")
        return {"mean": features.mean(0), "between": between.clamp(min=_SHORT)}

    def _score(self, seen: Activations) -> Tensor:
        features, logits = seen[PENULTIMATE], seen[LOGITS]
        largest, predicted = logits.max(1)
        # that of the predicted class itself is 0
        distances = ((largest[:, None] - logits) / self.between[predicted]).sum(1)
        others = max(1, logits.shape[1] - 1)
        score: Tensor = -distances / (others * (features - self.mean).norm(dim=1).clamp(min=_SHORT))
        return score
