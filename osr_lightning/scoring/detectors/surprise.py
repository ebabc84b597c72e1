"""How rarely known images have so large a statistic: ``-log p`` among references, with a tail beyond them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_TAIL = 0.1  # share of the references that says how fast the tail falls


def tail_slopes(references: Tensor) -> Tensor:
    """One over the mean excess of the largest tenth of each row of ``(R, n)``; ``(R,)``."""
    largest = references[:, -max(2, math.ceil(_TAIL * references.shape[1])) :]
    excess = largest.mean(1) - largest[:, 0]
    spread = references[:, -1] - references[:, 0]
    # equal references have no scale
    scale = torch.where(excess > 0, excess, torch.where(spread > 0, spread, 1.0))
    return 1 / scale


def surprise(statistics: Tensor, references: Tensor, slopes: Tensor) -> Tensor:
    """``-log p`` of statistics ``(R, B)`` among sorted references ``(R, n)``, with slopes ``(R,)`` beyond."""
    count = references.shape[1]
    right = _ranks(references, statistics).clamp(max=count - 1)
    left = (right - 1).clamp(min=0)
    low, high = references.gather(1, left), references.gather(1, right)
    share = (statistics - low) / torch.where(high > low, high - low, 1.0)
    lower, upper = _height(left, count), _height(right, count)
    between = lower + share * (upper - lower)
    smallest, largest, slope = references[:, :1], references[:, -1:], slopes[:, None]
    # above the largest, right is the last; below the smallest, left is the first
    above = upper + (statistics - largest) * slope
    below = lower * ((statistics - smallest).clamp(max=0) * slope).exp()
    inside = torch.where(statistics < smallest, below, between)
    return torch.where(statistics >= largest, above, inside)


def _height(index: Tensor, count: int) -> Tensor:
    """``-log p`` of the references at these positions: at and above the one at 0 are ``n`` of ``n + 1``."""
    return -(-(index.double() + 1) / (count + 1)).log1p()


def _ranks(references: Tensor, statistics: Tensor) -> Tensor:
    """How many of the sorted references ``(R, n)`` are as small as each statistic ``(R, B)``; ``(R, B)``."""
    if not torch.compiler.is_compiling():
        return torch.searchsorted(references, statistics.contiguous(), right=True)
    # ONNX has no search: first in which row of a square, then where in the row
    side = math.isqrt(references.shape[1] - 1) + 1
    filled = F.pad(references, (0, side * side - references.shape[1]), value=math.inf)
    square = filled.view(-1, side, side)
    row = ((square[:, :, 0, None] <= statistics[:, None]).sum(1) - 1).clamp(min=0)  # (R, B)
    within = square.gather(1, row[..., None].expand(-1, -1, side))  # (R, B, side)
    ranks: Tensor = row * side + (within <= statistics[..., None]).sum(2)
    return ranks
