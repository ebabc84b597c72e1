"""Distance to the nearest training features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import PENULTIMATE
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector, Known

_CHUNK = 2**22  # distances held at once: 32 MB


class KNN(Detector):
    """``||f - f_k||`` in [0, 2], both at unit length: distance to the ``k``-th nearest training features.

    Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022. The search is exact;
    with fewer than ``k`` training images, the furthest counts. Training features are kept in float32, which
    moves a distance by less than 1e-6.

    Args:
        k: the paper's is 50 for 50,000 images; 10 of 10,000 rank as well and are found ten times as fast.
        max_points: how many training images to keep, drawn at random; ``None`` for all.
        seed: of that draw.
    """

    name = "knn"
    state = ("neighbours",)
    fits_probability = False
    neighbours: Tensor  # (at most max_points, D) float32

    def __init__(self, k: int = 10, max_points: int | None = 10_000, seed: int = 0) -> None:
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}.")
        if max_points is not None and max_points < 1:
            raise UserError(f"max_points must be at least 1, got {max_points}.")
        super().__init__()
        self.k, self.max_points, self.seed = k, max_points, seed

    def _fit(self, known: Known) -> Buffers:
        features = known.seen[PENULTIMATE]
        if self.max_points is not None and self.max_points < len(features):
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randperm(len(features), generator=generator)[: self.max_points]
            features = features[drawn.to(features.device)]
        return {"neighbours": F.normalize(features).float()}

    def _score(self, seen: Activations) -> Tensor:
        features = seen[PENULTIMATE]
        neighbours = self.neighbours.double()
        k, lengths = min(self.k, len(neighbours)), neighbours.square().sum(1)
        squares = []
        queries = F.normalize(features)
        once = torch.compiler.is_compiling()  # else a few at a time
        chunks = (queries,) if once else torch.split(queries, max(1, _CHUNK // len(neighbours)))
        for chunk in chunks:
            # |a - b|^2 less |a|^2, which the ranking does not need
            nearest = torch.addmm(lengths, chunk, neighbours.T, alpha=-2).topk(k, largest=False).values
            squares.append(nearest[:, -1] + chunk.square().sum(1))
        return torch.cat(squares).clamp(min=0).sqrt()
