"""The residual: what of the features lies where training images have next to nothing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import PENULTIMATE
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector, Known


class Residual(Detector):
    """``||R'(f - o)||``, 0 or more: how far features lie from the space in which training features vary.

    ``o = -W^+ b`` is where the last layer's logits vanish, ``R`` the directions in which training features
    vary least about it, all but the first ``dimension``.
    Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022, who compare ViM with it.

    Args:
        dimension: of the principal space; the authors' rule if not given: 1000 from ``D = 2048`` on, 512
            from 768 on, else ``D // 2``.
    """

    name: ClassVar[str] = "residual"
    state: ClassVar[tuple[str, ...]] = ("origin", "residual")
    fits_probability = False
    origin: Tensor  # (D,)
    residual: Tensor  # (D, D - dimension)

    def __init__(self, dimension: int | None = None) -> None:
        if dimension is not None and dimension < 0:
            raise UserError(f"dimension must be at least 0, got {dimension}.")
        super().__init__()
        self.dimension = dimension

    def _fit(self, known: Known) -> Buffers:
        features = known.seen[PENULTIMATE]
        width = features.shape[1]
        dimension = self.dimension
        if dimension is None:
            dimension = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        if dimension >= width:
            raise UserError(f"dimension must be below the {width} features there are, got {dimension}.")
        origin = features.new_zeros(width)
        if known.layer.bias is not None:
            origin = -torch.linalg.pinv(known.layer.weight.to(features)) @ known.layer.bias.to(features)
        centered = features - origin
        axes = torch.linalg.eigh(centered.T @ centered).eigenvectors  # least variance first
        return {"origin": origin, "residual": axes[:, : width - dimension]}

    def _score(self, seen: Activations) -> Tensor:
        length: Tensor = ((seen[PENULTIMATE] - self.origin) @ self.residual).norm(dim=1)
        return length
