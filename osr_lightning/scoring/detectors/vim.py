"""The virtual logit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector


class ViM(Detector):
    """``alpha ||R'(f - o)|| - log sum_k exp z_k``, any real number: a virtual logit against the real ones.

    ``o = -W^+ b`` is where the last layer's logits vanish, ``R`` the directions in which training features
    vary least about it, all but the first ``dimension``; ``alpha`` makes the mean virtual logit of training
    images equal the mean of their largest logits. The paper's score is the softmax probability of the
    virtual logit; this is its log-odds, which rank the same and do not tie.
    Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022.

    Deviation: the mean residual that ``alpha`` divides by is at least 1e-6 of the mean length of ``f - o``,
    for training features that leave none.

    Args:
        dimension: of the principal space; the authors' rule if not given: 1000 from ``D = 2048`` on, 512
            from 768 on, else ``D // 2``.
    """

    name = "vim"
    state = ("origin", "residual", "alpha")
    fits_probability = False
    origin: Tensor  # (D,)
    residual: Tensor  # (D, D - dimension)
    alpha: Tensor  # ()

    def __init__(self, dimension: int | None = None) -> None:
        if dimension is not None and dimension < 0:
            raise UserError(f"dimension must be at least 0, got {dimension}.")
        super().__init__()
        self.dimension = dimension

    def _fit(
        self, seen: Activations, labels: Tensor, layer: nn.Linear | None, held_out: Activations | None
    ) -> Buffers:
        features, logits = seen[PENULTIMATE], seen[LOGITS]
        if layer is None:
            raise UserError("The score vim needs the network's last linear layer; pass last_layer.")
        width = features.shape[1]
        dimension = self.dimension
        if dimension is None:
            dimension = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        if dimension >= width:
            raise UserError(f"dimension must be below the {width} features there are, got {dimension}.")
        origin = features.new_zeros(width)
        if layer.bias is not None:
            origin = -torch.linalg.pinv(layer.weight.to(features)) @ layer.bias.to(features)
        centered = features - origin
        axes = torch.linalg.eigh(centered.T @ centered).eigenvectors  # least variance first
        residual = axes[:, : width - dimension]
        floor = 1e-6 * centered.norm(dim=1).mean()
        length = (centered @ residual).norm(dim=1).mean().clamp(min=floor)
        return {"origin": origin, "residual": residual, "alpha": logits.amax(1).mean() / length}

    def _score(self, seen: Activations) -> Tensor:
        features, logits = seen[PENULTIMATE], seen[LOGITS]
        virtual: Tensor = self.alpha * ((features - self.origin) @ self.residual).norm(dim=1)
        return virtual - logits.logsumexp(1)
