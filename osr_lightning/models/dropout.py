"""Dropout masks: drawn once for ``S`` fixed sub-networks, or anew for every image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.networks import SplitNetwork

RATE = 0.3  # of a dropout that is put into a network
Dropout: TypeAlias = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d


def active_dropouts(network: nn.Module) -> list[Dropout]:
    """The network's dropout modules with ``p > 0``, each once.

    Only ``nn.Dropout`` and ``nn.Dropout1d/2d/3d`` are seen: calls of ``F.dropout`` are not.

    Raises:
        UserError: if one is of a kind that cannot be sampled, or has ``p = 1``.
    """
    found: list[Dropout] = []
    for name, module in network.named_modules():
        if isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)) and module.p > 0:
            raise UserError(f"{name} is {type(module).__name__}, which MC dropout does not support.")
        if isinstance(module, Dropout) and module.p > 0:
            if module.p >= 1:
                raise UserError(f"The dropout {name!r} has p={module.p}, which drops everything.")
            found.append(module)
    return found


def dropout_places(network: nn.Module) -> list[tuple[nn.Module, str, Dropout]]:
    """Where active dropouts stand: the module that holds one, its name there, and it; some more than once."""
    active = active_dropouts(network)
    return [
        (module, name, child)
        for module in network.modules()
        for name, child in module._modules.items()
        if isinstance(child, Dropout) and child in active
    ]


def give_dropout(network: SplitNetwork, rate: float | None) -> float | None:
    """Give a network without dropout one before its last layer, or set the rate of the only one.

    Args:
        network: changed in place.
        rate: probability in (0, 1) that a feature is dropped; None: 0.3 where there is no dropout.

    Returns:
        The rate that was put in; None where the network is as it was.

    Raises:
        UserError: for a rate out of range, or where the network has several dropouts or deeper ones.
    """
    if rate is not None and not (isinstance(rate, (int, float)) and 0 < rate < 1):
        raise UserError(f"model.dropout must lie between 0 and 1, got {rate}")
    places = dropout_places(network)
    if not places:
        network.dropout = nn.Dropout(RATE if rate is None else rate)
        return RATE if rate is None else rate
    if rate is None:
        return None
    if len(places) > 1 or places[0][:2] != (network, "dropout"):
        raise UserError("model.dropout is for a network without dropout of its own; leave it out")
    places[0][2].p = rate
    return rate


def mask_shape(dropout: Dropout, features: Tensor) -> tuple[int, ...]:
    """The shape of one image's mask for features ``(B, ...)``: elements, or whole channels."""
    if isinstance(dropout, nn.Dropout):
        return tuple(features.shape[1:])
    return (features.shape[1], *[1] * (features.ndim - 2))


def draw_masks(shape: Sequence[int], p: float, generator: torch.Generator) -> Tensor:
    """0 with probability ``p``, else ``1 / (1 - p)``; drawn on the CPU, so that all devices decide alike."""
    # device and dtype are named because the defaults of both can be changed from outside
    keep = torch.rand(tuple(shape), generator=generator, device="cpu", dtype=torch.float32) >= p
    return keep.float() / (1 - p)


@dataclass
class Pass:
    """One pass through a network whose dropouts are `MaskedDropout`.

    Attributes:
        sample: which of the fixed masks to use; ``None``: no dropout acts.
        generator: draws masks for every image instead.
        shapes: filled with the mask of each call, in order, while a pass is being watched.
        calls: how often each dropout was called so far.
    """

    sample: int | None = None
    generator: torch.Generator | None = None
    shapes: list[tuple[MaskedDropout, tuple[int, ...]]] | None = None
    calls: dict[MaskedDropout, int] = field(default_factory=dict)


# per thread, so that several may ask one network at once
_current: ContextVar[Pass | None] = ContextVar("pass", default=None)


@contextmanager
def running(one: Pass) -> Iterator[None]:
    """Within the block the `MaskedDropout` modules follow ``one``, not their mode."""
    token = _current.set(one)
    try:
        yield
    finally:
        _current.reset(token)


class MaskedDropout(nn.Module):
    """Stands in for a dropout deep inside a network, and behaves like it outside of `running`.

    Args:
        original: whose probability and kind it takes.
    """

    def __init__(self, original: Dropout) -> None:
        super().__init__()
        self.original = original

    def fix(self, masks: Sequence[Tensor]) -> None:
        """Keep the masks of each call in a pass, ``(S, ...)`` each."""
        for call, mask in enumerate(masks):
            self.register_buffer(f"masks_{call}", mask)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, ...)`` times a mask."""
        now = _current.get()
        if now is None:
            dropped: Tensor = self.original(features)
            return dropped
        shape = mask_shape(self.original, features)
        if now.shapes is not None:
            now.shapes.append((self, shape))
            return features
        if now.generator is not None:
            mask = draw_masks((len(features), *shape), self.original.p, now.generator)
        elif now.sample is not None:
            call = now.calls.get(self, 0)
            now.calls[self] = call + 1
            mask = getattr(self, f"masks_{call}")[now.sample]
        else:
            return features
        return features * mask.to(features)


def mask_dropouts(network: nn.Module) -> None:
    """Put a `MaskedDropout` in the place of each active dropout below ``network``."""
    stand_ins = {dropout: MaskedDropout(dropout) for dropout in active_dropouts(network)}
    for module, name, dropout in dropout_places(network):
        setattr(module, name, stand_ins[dropout])
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # in eval mode torch would else take a fast path that runs past the dropouts
            module.activation_relu_or_gelu = 0
