"""OpenMax and its Weibull fit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import LOGITS
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector, Known, squared_distance

_SHIFT = 10_000.0  # libMR's: the fit is to distance - smallest + shift


class OpenMax(Detector):
    """``v_0 - log sum_k exp v_k``, any real number: log-odds of the unknown class among revised activations.

    ``v_k = z_k (1 - a_k w_k)`` and ``v_0 = sum_k z_k a_k w_k``; ``a_k`` falls linearly from 1 for the largest
    logit to 0 after ``top`` of them, and ``w_k`` is a Weibull distribution's share below the distance from
    ``z`` to the mean of class ``k``. Means are over training logits classified correctly, and each
    distribution is fitted to the ``tail`` largest of their distances, by maximum likelihood after the shift
    of the authors' libMR. The paper's score is the probability; its log-odds rank the same and do not tie.
    Bendale and Boult, Towards Open Set Deep Networks, CVPR 2016.

    Deviations: distances are Euclidean, as in the paper's algorithms; the authors' code adds a cosine
    distance. ``a_k`` is that of the code. A class without correctly classified images has ``w_k = 1``.

    Args:
        tail: distances per class to fit to; all of a class that has fewer.
        top: how many of the largest logits to revise, at most K of them; the paper's alpha.
    """

    name = "openmax"
    state = ("means", "smallest", "shape", "scale")
    fits_probability = False
    means: Tensor  # (K, K)
    smallest: Tensor  # (K,), the least distance of each tail
    shape: Tensor  # (K,), of the Weibull distributions
    scale: Tensor  # (K,)

    def __init__(self, tail: int = 20, top: int = 10) -> None:
        if tail < 2:
            raise UserError(f"tail must be at least 2, got {tail}.")
        if top < 1:
            raise UserError(f"top must be at least 1, got {top}.")
        super().__init__()
        self.tail, self.top = tail, top

    def _fit(self, known: Known) -> Buffers:
        logits = known.seen[LOGITS]
        classes = logits.shape[1]
        means = logits.new_zeros(classes, classes)
        smallest = logits.new_zeros(classes)
        # w_k = 1 - exp(-10,000) at any distance, unless there is something to fit to
        shape, scale = torch.ones_like(smallest), torch.ones_like(smallest)
        correct = logits.argmax(1) == known.labels
        for k in torch.unique(known.labels[correct]).tolist():
            activations = logits[correct & (known.labels == k)]
            means[k] = activations.mean(0)
            distances = (activations - means[k]).norm(dim=1)
            tail = distances.topk(min(self.tail, len(distances))).values
            smallest[k] = tail[-1]
            shape[k], scale[k] = fit_weibull(tail - tail[-1] + _SHIFT)
        return {"means": means, "smallest": smallest, "shape": shape, "scale": scale}

    def _score(self, seen: Activations) -> Tensor:
        logits = seen[LOGITS]
        distances = squared_distance(logits, self.means).sqrt() - self.smallest + _SHIFT  # (B, K)
        hazard = ((distances.clamp(min=0) / self.scale).log() * self.shape).exp()
        rank = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 is the largest
        weight: Tensor = (1 - rank.double() / min(self.top, logits.shape[1])).clamp(min=0)
        moved = logits * weight * -(-hazard).expm1()
        return moved.sum(1) - (logits - moved).logsumexp(1)


def fit_weibull(values: Tensor) -> tuple[float, float]:
    """Shape and scale of the Weibull distribution that makes ``values (n,)``, above 0, likeliest.

    The shape ``c`` solves ``sum x^c log x / sum x^c - mean log x = 1/c``, whose left side grows with ``c``
    while the right one falls: halving an interval finds it. Equal values give its upper end, 1e12.
    """
    peak = float(values.max())
    logs = (values.cpu() / peak).log()
    low, high = math.log(1e-3), math.log(1e12)
    for _ in range(64):
        middle = (low + high) / 2
        powers = (math.exp(middle) * logs).exp()
        below = float((powers * logs).sum() / powers.sum() - logs.mean()) < math.exp(-middle)
        low, high = (middle, high) if below else (low, middle)
    return math.exp(middle), peak * float(powers.mean()) ** math.exp(-middle)
