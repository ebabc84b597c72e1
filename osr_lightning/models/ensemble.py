"""Several samplers as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone, Body
from osr_lightning.models.mc_dropout import MAX_SAMPLES, MCDropout
from osr_lightning.models.sampling import LOGITS, NOT_TRAINED, Layers, LogitSampler, Sampled

_OF = ":"  # behind a member's number, before the name of its layer


class Ensemble(LogitSampler):
    """Several samplers whose samples stand side by side on the axis ``S``.

    Features of a layer are the members' end to end, and ``"1:penultimate"`` are those of the second member
    alone; logits of the pass without dropout are their mean. A backbone that all members share (see
    `share_body`) runs once, and stands once in the state dict.

    Args:
        members: at least one; each is a network trained by itself.
    """

    def __init__(self, members: Sequence[LogitSampler]) -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)
        self.register_state_dict_post_hook(_leave_copies_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_copies_in)  # type: ignore[no-untyped-call]
        self.num_samples = sum(member.num_samples for member in members)
        if self.num_samples > MAX_SAMPLES:
            raise UserError(
                f"the members draw {self.num_samples:,} samples together, and {MAX_SAMPLES:,} are the most"
            )

    def sample(self, images: Tensor, layers: Collection[str] = ()) -> Sampled:
        """Logits ``(S, B, K)`` of all members' samples in turn, and their features."""
        if (body := self.body) is not None:
            images = body(images)  # members let features through
        joint = [name for name in layers if _OF not in name]
        found: list[Sampled] = []
        features: dict[str, Tensor] = {}
        for number, member in enumerate(self.members):
            before = f"{number}{_OF}"
            own = [name.removeprefix(before) for name in layers if name.startswith(before)]
            found.append(cast(LogitSampler, member).sample(images, [*joint, *own]))
            features |= {before + name: found[-1].features[name] for name in own}
        for name in joint:
            each = [one.features[name] for one in found]
            features[name] = torch.stack(each).mean(0) if name == LOGITS else torch.cat(each, dim=1)
        return Sampled(torch.cat([one.logits for one in found]), features)

    def training_logits(self, images: Tensor) -> Tensor:
        """There are none.

        Raises:
            UserError: always.
        """
        raise UserError(NOT_TRAINED)

    @property
    def body(self) -> Body | None:
        """The backbone that all members share; None where each has a network of its own."""
        bodies = [_body(member) for member in self.members]
        return bodies[0] if len(bodies) > 1 and all(one is bodies[0] for one in bodies) else None

    @property
    def layers_by_network(self) -> tuple[Layers, ...]:
        """Each member's, named as its own; the first one's alone where all see the same features."""
        members = list(self.members)[: None if self.body is None else 1]
        found = []
        for number, member in enumerate(members):
            of = f"{number}{_OF}"
            for own in cast(LogitSampler, member).layers_by_network:
                last = None if own.last is None else of + own.last
                found.append(Layers(tuple(of + name for name in own.blocks), last, own.style))
        return tuple(found)

    @property
    def last_layer(self) -> nn.Linear:
        """One layer that makes the mean logits of the features end to end."""
        layers = [cast(LogitSampler, member).last_layer for member in self.members]
        weight = torch.cat([layer.weight for layer in layers], dim=1) / len(layers)
        # without initial values, which would be drawn from the global generator
        merged: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype
        )
        zero = torch.zeros_like(layers[0].weight[:, 0])
        biases: list[Tensor] = [zero if layer.bias is None else layer.bias for layer in layers]
        merged.weight.data, merged.bias.data = weight.data, torch.stack(biases).mean(0).data
        return merged

    def restart(self) -> None:
        """Each member begins again."""
        for member in self.members:
            cast(LogitSampler, member).restart()


def own_name(layer: str) -> str:
    """What a member calls the layer itself: ``penultimate`` of ``"1:penultimate"``."""
    return layer.rpartition(_OF)[2]


def share_body(first: LogitSampler, other: LogitSampler) -> bool:
    """Let the other's network see by the first one's backbone, where both have one of the same shapes.

    Returns:
        Whether they have. The caller knows that their weights are the same, or loads them afterwards.
    """
    mine, its = _body(first), _body(other)
    if mine is None or its is None or _shapes(mine) != _shapes(its) or mine.style != its.style:
        return False
    other.network.trunk.body = mine
    return True


def same_body(samplers: Sequence[LogitSampler]) -> bool:
    """Whether all networks have one backbone, with the same weights."""
    bodies = [_body(sampler) for sampler in samplers]
    return (
        len({None if body is None else body.digest() for body in bodies} - {None}) == 1 and None not in bodies
    )


def _body(member: nn.Module) -> Body | None:
    """A member's backbone; None where it has none, or one with dropouts that run once for each sample."""
    network = getattr(member, "network", None)
    deep = isinstance(member, MCDropout) and member.deep
    return network.body if isinstance(network, Backbone) and not deep else None


def _shapes(body: Body) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in body.state_dict().items()}


def _copies(ensemble: nn.Module, prefix: str) -> tuple[str, list[str]]:
    """How the names of a shared backbone's weights begin in a state dict, and how those of its copies do."""
    assert isinstance(ensemble, Ensemble)
    begin = [f"{prefix}members.{number}.network.trunk.body." for number in range(len(ensemble.members))]
    return begin[0], [] if ensemble.body is None else begin[1:]


def _leave_copies_out(ensemble: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    for copy in _copies(ensemble, prefix)[1]:
        for name in [name for name in state if name.startswith(copy)]:
            del state[name]


def _fill_copies_in(ensemble: nn.Module, state: dict[str, Any], prefix: str, *others: object) -> None:
    first, copies = _copies(ensemble, prefix)
    there = {name.removeprefix(first): value for name, value in state.items() if name.startswith(first)}
    for copy in copies:
        state |= {copy + name: value for name, value in there.items()}
