"""The weight decay of a linear layer on features, chosen by validation images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GRID = (0.3, 0.1, 0.03, 0.01)  # of 1/2 the squared weights, for features of the length sqrt(D)
_MOST = 5000  # training images that choose: more change the choice by less than the next of the grid
_ITERATIONS = 60


def balanced(labels: Tensor, num_classes: int) -> Tensor:
    """Weights ``(K,)`` under which classes weigh the same in the loss, whatever their number of images."""
    counts = torch.bincount(labels, minlength=num_classes).clamp(min=1)
    return len(labels) / num_classes / counts


def held_out_losses(
    features: Tensor,
    labels: Tensor,
    held_out: Tensor,
    held_out_labels: Tensor,
    num_classes: int,
    class_weights: Tensor | None = None,
) -> list[float]:
    """The cross-entropy of held-out known images under each weight decay of ``GRID``.

    Each is solved by L-BFGS from the solution of the next larger one.

    Args:
        features: ``(N, D)`` of training images, as the layer sees them.
        labels: ``(N,)``.
        held_out: ``(M, D)`` of validation images.
        held_out_labels: ``(M,)``.
        num_classes: ``K``.
        class_weights: ``(K,)`` in the loss; all 1 if not given.
    """
    if len(features) > _MOST:
        rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:_MOST]
        features, labels = features[rows], labels[rows]
    weight = features.new_zeros(num_classes, features.shape[1], requires_grad=True)
    bias = features.new_zeros(num_classes, requires_grad=True)
    found: list[float] = []
    for decay in GRID:
        solve(weight, bias, features, labels, decay, class_weights)
        with torch.no_grad():
            loss = F.cross_entropy(F.linear(held_out, weight, bias), held_out_labels, class_weights)
        found.append(float(loss))
    return found


def solve(
    weight: Tensor,
    bias: Tensor,
    features: Tensor,
    labels: Tensor,
    decay: float,
    class_weights: Tensor | None = None,
) -> None:
    """Minimise cross-entropy plus ``decay / 2`` times the squared weights, in place.

    Args:
        weight: ``(K, D)``, which begins where it is.
        bias: ``(K,)``.
        features: ``(N, D)``.
        labels: ``(N,)``.
        decay: 0 or above.
        class_weights: ``(K,)``; all 1 if not given.
    """
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, weight, bias), labels, class_weights)
        loss = loss + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
