"""Samplers: standardised images -> logits of ``S`` samples ``(S, B, K)``, and features by layer.

One deterministic pass is one sample. MC dropout gives ``S`` samples of one network; with shared masks these
are ``S`` fixed sub-networks, an ensemble whose members have weights in common. What comes before the dropout
runs once per image, whatever ``S``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.fold import mixes_images
from osr_lightning.models.networks import SplitNetwork

PENULTIMATE, LOGITS = "penultimate", "logits"
NOT_TRAINED = "an ensemble is not trained: train its members, and join their checkpoints with osr ensemble"
_TRUNK_IMAGES = 128  # the most that go through the trunk at once on a CPU
_POOLED = "/pooled"  # behind the name of a layer
_POOLED_VALUES = 160  # 3x3 of 16 channels, 2x2 of 32: a covariance of so many is estimated from a class


class Sampled(NamedTuple):
    """What one batch of ``B`` images gives.

    Attributes:
        logits: ``(S, B, K)``.
        features: of the pass without dropout, for each layer asked for: ``penultimate`` ``(B, D)``, what
            the last linear layer sees; ``logits`` ``(B, K)``, what it returns; by the name of a child
            of the trunk what that returns, ``(B, ...)``; and by its `pooled_name` that averaged over the
            cells of the finest square grid that gives at most 160 values, ``(B, D)``.
    """

    logits: Tensor
    features: dict[str, Tensor]


class Layers(NamedTuple):
    """Which layers of a network are worth a look.

    Attributes:
        blocks: what ends its blocks, in order.
        last: what the last layer sees, ``penultimate`` or the name of a child of the trunk that gives an
            image's style as well; None of a network that does not end in an ``nn.Linear``.
        style: how many values of ``last``, at its end, are the style.
    """

    blocks: tuple[str, ...]
    last: str | None
    style: int


class LogitSampler(nn.Module):
    """What all samplers share.

    Attributes:
        num_samples: ``S``.
        network: what is trained.
        mirror: whether logits and features are the mean of those of an image and of its mirror image.
        recipe: what a checkpoint keeps of how this was built, in plain values.
    """

    num_samples: int
    mirror = False
    network: SplitNetwork
    recipe: dict[str, Any]

    def forward(self, images: Tensor, layers: Collection[str] = ()) -> Sampled:
        """Sample ``(B, C, H, W)`` standardised images; no module changes its mode.

        Args:
            images: on the network's device; ``B`` may be 0.
            layers: whose features to return as well.

        Raises:
            UserError: for a layer that the network does not have.
        """
        sampled = self.sample(images, layers)
        if not self.mirror:
            return sampled
        mirrored = self.sample(images.flip(-1), layers)
        features = {name: (own + mirrored.features[name]) / 2 for name, own in sampled.features.items()}
        return Sampled((sampled.logits + mirrored.logits) / 2, features)

    def sample(self, images: Tensor, layers: Collection[str] = ()) -> Sampled:
        """What `forward` gives of the images as they are, whether or not it looks at mirror images too."""
        raise NotImplementedError

    def training_logits(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of one pass, in the mode that the network is in."""
        logits: Tensor = self.network(images)
        return logits

    @property
    def layers_by_network(self) -> tuple[Layers, ...]:
        """Each network's."""
        network = self.network
        last = None if network.last is None else network.styled or PENULTIMATE
        return (Layers(network.blocks, last, network.style),)

    @property
    def last_layer(self) -> nn.Linear:
        """The classifying layer.

        Raises:
            UserError: where the network does not end in an ``nn.Linear``.
        """
        if self.network.last is None:
            raise UserError(
                "the network does not end in an nn.Linear to take features from; "
                "use a network that does, or a score that needs no features"
            )
        return cast(nn.Linear, self.network.head[self.network.last])

    def restart(self) -> None:
        """Begin again with what is drawn at random, where anything is."""

    def _trunk(self, images: Tensor, layers: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The trunk's features, on a CPU a few images at a time, and those of its children in ``layers``.

        The first activations of a thousand images are tens of megabytes: more than a cache holds, and by
        default more than the C library keeps from one batch to the next.
        """
        trunk = self.network.trunk
        early = [name for name in layers if name not in (PENULTIMATE, LOGITS)]
        children = dict(trunk.named_children())
        plain = type(trunk).forward is nn.Sequential.forward  # a trace has classes of its own for modules
        known = {*children, *map(pooled_name, children)} if plain else {*()}
        if strangers := [name for name in early if name not in known]:
            raise UserError(
                f"the network's trunk has no layer {strangers[0]!r}; it has: {', '.join(children)}"
            )
        # a graph has no loop over a number of images that it is yet to be told
        whole = torch.compiler.is_compiling() or images.device.type != "cpu" or mixes_images(trunk)
        chunks = (images,) if whole else torch.split(images, _TRUNK_IMAGES)
        if not early:
            return _cat([cast(Tensor, trunk(chunk)) for chunk in chunks]), {}
        kept: dict[str, list[Tensor]] = {name: [] for name in early}
        ends = []
        for chunk in chunks:
            features = chunk
            for name, layer in children.items():
                features = layer(features)
                if name in kept:
                    kept[name].append(features.clone())  # the next layer may work in place
                if (short := pooled_name(name)) in kept:
                    kept[short].append(_pooled(features))
            ends.append(features)
        return _cat(ends), {name: _cat(parts) for name, parts in kept.items()}

    def _finish(
        self, hidden: Tensor, begin: int, keep: int | None, samples: int = 0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the head from its module ``begin`` on.

        Args:
            hidden: ``(s, b, ...)``, or ``(b, s, ...)``.
            begin: position in the head.
            keep: which sample is the pass without dropout, whose features are returned; ``None``: no one.
            samples: which axis of ``hidden`` the samples lie on, 0 or 1.

        Returns:
            Logits ``(s, b, K)``, and features.
        """
        head, shape = self.network.head, hidden.shape[:2]
        if keep is None:
            return head[begin:](hidden.flatten(0, 1)).unflatten(0, shape).movedim(samples, 0), {}
        linear = self.last_layer
        last = cast(int, self.network.last)
        seen = head[begin:last](hidden.flatten(0, 1))
        if seen.ndim != 2:
            raise UserError(
                f"the last nn.Linear must see features (B, D), not {tuple(seen.shape)}; "
                "use a score that needs no features"
            )
        raw = linear(seen)
        features = {
            name: values.unflatten(0, shape).select(samples, keep)
            for name, values in ((PENULTIMATE, seen), (LOGITS, raw))
        }
        return head[last + 1 :](raw).unflatten(0, shape).movedim(samples, 0), features


class Single(LogitSampler):
    """One pass, without the dropout between trunk and head: one sample.

    It is deterministic in eval mode; in training mode dropouts inside trunk and head act.

    Args:
        network: images ``(B, C, H, W)`` -> logits ``(B, K)``.
    """

    num_samples = 1

    def __init__(self, network: SplitNetwork) -> None:
        super().__init__()
        self.network = network

    def sample(self, images: Tensor, layers: Collection[str] = ()) -> Sampled:
        """Logits ``(1, B, K)`` of the only pass, and its features."""
        features, early = self._trunk(images, layers)
        logits, late = self._finish(features.unsqueeze(0), 0, 0 if layers else None)
        return Sampled(logits, early | late)


def pooled_name(layer: str) -> str:
    """What to ask for to have the activations of a child of the trunk averaged over a coarse grid."""
    return layer + _POOLED


def _pooled(features: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, C * cells)``; other shapes are only flattened."""
    if features.ndim != 4:
        return features.flatten(1).clone()
    cells = max(1, math.isqrt(_POOLED_VALUES // features.shape[1]))
    grid = (min(cells, features.shape[2]), min(cells, features.shape[3]))
    return F.adaptive_avg_pool2d(features, grid).flatten(1)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
