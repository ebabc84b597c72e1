"""What a training minimises, of logits and what they should say.

A new loss is one function under `register`.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

_SHORTEST = 1e-7  # what is added to a length, as in the authors' code


class Loss(Protocol):
    """A loss, averaged over a batch."""

    __name__: str

    def __call__(
        self, logits: Tensor, target: Tensor, weights: Tensor | None, smoothing: float, temperature: float
    ) -> Tensor:
        """The loss, ``()``.

        Args:
            logits: ``(B, K)`` of one pass.
            target: labels ``(B,)`` int64, or the share of each class ``(B, K)`` in a mixed image.
            weights: ``(K,)`` of the classes; all 1 if None.
            smoothing: share of the label, in [0, 1), that is spread over all classes.
            temperature: above 0, of a loss that has one.
        """


LOSSES: dict[str, Loss] = {}


def register(function: Loss) -> Loss:
    """Make a loss known by its name."""
    LOSSES[function.__name__] = function
    return function


@register
def cross_entropy(
    logits: Tensor, target: Tensor, weights: Tensor | None, smoothing: float, temperature: float
) -> Tensor:
    """``-log softmax(z)_y``."""
    return F.cross_entropy(logits, target, weights, label_smoothing=smoothing)


@register
def logit_norm(
    logits: Tensor, target: Tensor, weights: Tensor | None, smoothing: float, temperature: float
) -> Tensor:
    """``-log softmax(z / (t |z|))_y``: logits of one length, which therefore cannot grow.

    Wei et al., Mitigating Neural Network Overconfidence with Logit Normalization, ICML 2022. It is the
    training's alone: scores are of the logits as they are, which have learnt to be short of what is unlike
    the known images.
    """
    # in float32, as bfloat16 has three digits, which a low temperature makes large
    logits = logits if logits.dtype == torch.float64 else logits.float()
    length = torch.linalg.vector_norm(logits, dim=-1, keepdim=True) + _SHORTEST
    return F.cross_entropy(logits / (temperature * length), target, weights, label_smoothing=smoothing)
