"""Places in an image: a network's features of some places alone, or of an image without some.

The last layer whose output still lies on a grid is hooked. Where an average follows, as in most backbones, a
mean over some places in all others' stead gives exactly the features that these places alone have. A backbone
that looks twice, at an image and at its middle, has the same places twice: they lie apart by at most a
sixteenth of an edge. A sampler that looks at mirror images too is asked about the image alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from osr_lightning.models.networks import SplitNetwork
from osr_lightning.models.sampling import LogitSampler, Sampled

Layout: TypeAlias = Literal["channels first", "channels last", "tokens"]
_VALUES_AT_ONCE = 2**25  # of the hooked layer's outputs: 128 MB
_PREFIX = 8  # tokens of no place, at most: a class token and registers


class Spot(NamedTuple):
    """A layer whose output lies on a grid.

    Attributes:
        layout: of its output, ``(B, C, H, W)``, ``(B, H, W, C)`` or ``(B, prefix + places, C)``.
        side: places along an edge.
        values: numbers in the output of one image.
    """

    module: nn.Module
    layout: Layout
    side: int
    values: int


class Places:
    """The grid on which a sampler's networks last see an image.

    Args:
        sampler: of the networks.
        spots: the layer of each network, with one grid.
    """

    def __init__(self, sampler: LogitSampler, spots: list[Spot]) -> None:
        self._sampler, self._spots = sampler, spots
        self.side = spots[0].side

    @torch.no_grad()
    def sample(self, image: Tensor, layers: Collection[str], masks: Tensor) -> Sampled:
        """What the sampler gives of one image's places: logits ``(S, V, K)`` and features ``(V, …)``.

        Args:
            image: ``(1, C, H, W)``, standardised.
            layers: whose features to return.
            masks: ``(V, side²)`` bool, the places that are looked at; their mean stands in all others.
        """
        most = max(1, _VALUES_AT_ONCE // sum(spot.values for spot in self._spots))
        parts = []
        for some in torch.split(masks.to(image.device), most):
            with ExitStack() as stack:
                for spot in self._spots:
                    stack.enter_context(hooked(spot.module, _mean_elsewhere(spot, some)))
                parts.append(self._sampler.sample(image, layers))
            # what comes before the hooked layer has seen one image
            for name, value in parts[-1].features.items():
                parts[-1].features[name] = value.expand(len(some), *value.shape[1:])
        names = parts[0].features
        features = {name: torch.cat([part.features[name] for part in parts]) for name in names}
        return Sampled(torch.cat([part.logits for part in parts], dim=1), features)


@torch.no_grad()
def find_places(sampler: LogitSampler, image: Tensor, layers: Collection[str]) -> Places | None:
    """The last layers that the answer depends on place by place; None of networks without any.

    Args:
        sampler: any.
        image: ``(1, C, H, W)``, standardised.
        layers: whose features are asked for, which decides what runs.
    """
    networks = [part for part in sampler.modules() if isinstance(part, SplitNetwork)]
    inside = {part for network in networks for part in network.modules()}
    seen: list[Spot] = []  # in the order in which they ran

    def look(module: nn.Module, output: Any) -> None:  # noqa: ANN401 - whatever a layer returns
        if (spot := _spot(module, output)) is not None:
            seen[:] = [*(one for one in seen if one.module is not module), spot]

    with ExitStack() as stack:
        for part in inside:
            stack.enter_context(hooked(part, look))
        whole = sampler.sample(image, layers)
    candidates = []
    for network in networks:
        own = set(network.modules())
        mine = [spot for spot in reversed(seen) if spot.module in own]
        # what lies before it with another layout or grid may be attention's, whose axes are no places
        candidates.append([one for one in mine if (one.layout, one.side) == (mine[0].layout, mine[0].side)])
    if not candidates or not all(candidates) or len({one[0].side for one in candidates}) != 1:
        return None

    def at(number: int) -> Places | None:
        """The ``number``-th from the last, where the answer depends on it."""
        chosen = {id(own[number].module): own[number] for own in candidates}
        places = Places(sampler, [*chosen.values()])
        half = torch.arange(places.side**2) < places.side**2 // 2
        try:
            found = places.sample(image, layers, torch.stack([half, ~half])).logits
        except RuntimeError:  # a network that works out its batch before this layer
            return None
        right = found.shape[:2] == (len(whole.logits), 2) and not torch.equal(found[:, 0], found[:, 1])
        return places if right else None

    found = at(0)
    # an answer that comes from a class token depends on no place from its last attention on
    low, high = 0, min(map(len, candidates)) - 1
    while found is None and low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if at(middle) is not None else (middle + 1, high)
        found = at(low) if low == high else None
    return found


def windows(side: int, size: int, most: int) -> tuple[Tensor, list[int]]:
    """Square windows of ``size`` places, at most ``most`` along an edge.

    Returns:
        ``(n², side²)`` bool, row by row; and where the ``n`` begin along an edge.
    """
    count = min(most, side - size + 1)
    begins = sorted({round(at) for at in torch.linspace(0, side - size, count).tolist()})
    place = torch.arange(side)
    along = torch.stack([(place >= begin) & (place < begin + size) for begin in begins])  # (n, side)
    grid = along[:, None, :, None] & along[None, :, None, :]
    return grid.flatten(0, 1).flatten(1), begins


def _spot(module: nn.Module, output: Any) -> Spot | None:  # noqa: ANN401
    if not isinstance(output, Tensor) or len(output) != 1 or not output.is_floating_point():
        return None
    if output.ndim == 4:
        _, first, second, last = output.shape
        if second == last > 1:
            return Spot(module, "channels first", last, output.numel())
        if first == second > 1:
            return Spot(module, "channels last", first, output.numel())
    if output.ndim == 3:
        side = math.isqrt(output.shape[1])
        if side > 1 and output.shape[1] - side**2 <= _PREFIX:
            return Spot(module, "tokens", side, output.numel())
    return None


def _mean_elsewhere(spot: Spot, masks: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
    """What turns a layer's output for one image into one for each of ``masks`` ``(V, places)``."""

    def varied(module: nn.Module, output: Tensor) -> Tensor:
        if len(output) != 1:  # a layer that runs again on what came of it
            return output
        places, prefix = _as_places(spot, output)  # (places, C), (prefix, C)
        weights = masks.to(places) / masks.sum(1, keepdim=True)
        kept = masks[:, :, None]
        filled = torch.where(kept, places, (weights @ places)[:, None])  # (V, places, C)
        if spot.layout == "tokens":
            return torch.cat([prefix.expand(len(masks), *prefix.shape), filled], dim=1)
        grid = filled.view(len(masks), spot.side, spot.side, -1)
        return grid.permute(0, 3, 1, 2) if spot.layout == "channels first" else grid

    return varied


def _as_places(spot: Spot, output: Tensor) -> tuple[Tensor, Tensor]:
    if spot.layout == "tokens":
        tokens = output[0]
        prefix = len(tokens) - spot.side**2
        return tokens[prefix:], tokens[:prefix]
    grid = output[0].permute(1, 2, 0) if spot.layout == "channels first" else output[0]
    return grid.flatten(0, 1), grid[:0, 0]


@contextmanager
def hooked(module: nn.Module, hear: Callable[[nn.Module, Any], Any]) -> Iterator[None]:
    """Let a function hear a layer's output, in this thread, and give another in its place if not None."""
    mine = threading.get_ident()  # what other threads ask of the network stays as it is

    def hook(layer: nn.Module, _: object, output: Any) -> Any:  # noqa: ANN401
        return hear(layer, output) if threading.get_ident() == mine else None

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
