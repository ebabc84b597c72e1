"""What the scores fitted on features are made from: the input and the output of the last linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from osr_lightning.errors import UserError


def last_linear(network: nn.Module) -> nn.Linear:
    """The classifying layer: the last ``nn.Linear`` in the order in which the network registers its modules.

    Raises:
        UserError: if the network has none.
    """
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(
            f"{type(network).__name__} has no nn.Linear to take features from; "
            "use a network that ends in one, or a score that needs no features."
        )
    return linears[-1]


def features_and_logits(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images ``(B, C, H, W)`` -> features ``(B, D)`` and logits ``(B, K)``, in one pass without dropout.

    Features are what the last linear layer sees, logits what it returns. Dropout modules do not act, so the
    features of an MC-dropout network are those of its mean network, the same in every pass; every other
    module stays in the mode it is in (a batch norm that is training goes on doing so). All modes are those
    found, afterwards. Calls of ``F.dropout`` are not seen.

    Raises:
        UserError: if the network has no ``nn.Linear``, or its last one is not run once with ``(B, D)``.
    """
    passes: list[tuple[Tensor, Tensor]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        passes.append((inputs[0], output))

    active = [m for m in network.modules() if isinstance(m, _DropoutNd) and m.training]
    hook = last_linear(network).register_forward_hook(record)
    try:
        for dropout in active:
            dropout.training = False
        network(images)
    finally:
        hook.remove()
        for dropout in active:
            dropout.training = True
    if len(passes) != 1 or passes[0][0].ndim != 2:
        raise UserError(
            f"The last nn.Linear of {type(network).__name__} must run once per pass on features (B, D), "
            f"got {[tuple(features.shape) for features, _ in passes]}; use a score that needs no features."
        )
    return passes[0]
