"""Several samplers as one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import MAX_SAMPLES
from osr_lightning.models.sampling import LOGITS, NOT_TRAINED, LogitSampler, Sampled

_OF = ":"  # behind a member's number, before the name of its layer


class Ensemble(LogitSampler):
    """Several samplers whose samples stand side by side on the axis ``S``.

    Features of a layer are the members' end to end, and ``"1:penultimate"`` are those of the second member
    alone; logits of the pass without dropout are their mean.

    Args:
        members: at least one; each is a network trained by itself.
    """

    def __init__(self, members: Sequence[LogitSampler]) -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble needs at least one member")
        self.members = nn.ModuleList(members)
        self.num_samples = sum(member.num_samples for member in members)
        if self.num_samples > MAX_SAMPLES:
            raise UserError(
                f"the members draw {self.num_samples:,} samples together, and {MAX_SAMPLES:,} are the most"
            )

    def forward(self, images: Tensor, layers: Collection[str] = ()) -> Sampled:
        """Logits ``(S, B, K)`` of all members' samples in turn, and their features."""
        joint = [name for name in layers if _OF not in name]
        found: list[Sampled] = []
        features: dict[str, Tensor] = {}
        for number, member in enumerate(self.members):
            before = f"{number}{_OF}"
            own = [name.removeprefix(before) for name in layers if name.startswith(before)]
            found.append(member(images, [*joint, *own]))
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
    def layers_by_network(self) -> tuple[tuple[str, ...], ...]:
        """Each member's, named as its own."""
        return tuple(
            tuple(f"{number}{_OF}{name}" for name in names)
            for number, member in enumerate(self.members)
            for names in cast(LogitSampler, member).layers_by_network
        )

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
