"""Any network -> the same network as trunk, dropout and head."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.dropout import dropout_places
from osr_lightning.models.networks import SplitNetwork


def split(network: nn.Module, input_shape: Sequence[int], num_classes: int) -> SplitNetwork:
    """Split a network where it computes the same afterwards, and check that it fits the data.

    A `SplitNetwork` stays as it is, an ``nn.Sequential`` is split at its one dropout, and any other network
    before its last linear layer, which a trial shows to be the last thing it does. What ends otherwise is
    a trunk with an empty head: it can be sampled, but gives no features.

    Args:
        network: images ``(B, C, H, W)`` -> logits ``(B, K)``; its last linear layer is moved.
        input_shape: ``(C, H, W)`` of an image.
        num_classes: ``K``.

    Raises:
        UserError: if the network does not take such images, or gives another number of logits.
    """
    name = getattr(network, "label", type(network).__name__)
    channels, size = input_shape[0], input_shape[1]
    # two images: a batch norm refuses one, and shapes show what is the batch
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
                network(images)  # gives lazy layers their sizes
            trial = copy.deepcopy(network).eval()
            for module, place, _ in dropout_places(trial):
                setattr(module, place, _Double())  # so that a dropout's place makes a difference
            images = images.to(next(trial.parameters(), images))
            logits = trial(images)
        except UserError:
            raise
        except Exception as error:  # whatever a user's forward raises
            raise UserError(
                f"the network {name} does not take images of {channels} channels and {size} pixels "
                f"({' '.join(str(error).split())[:200]}); give it parameters in_channels and image_size, or "
                "change data.channels and data.image_size"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
            shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(
                f"the network {name} gives {shape} for 2 images, but there are {num_classes} known classes: "
                f"its result must be logits (2, {num_classes}), so leave its number of classes to the data"
            )
        # by its forward, not by its attributes: another forward may do more than these three
        if isinstance(network, SplitNetwork) and type(network).forward is SplitNetwork.forward:
            return network
        if type(network) is nn.Sequential and (found := _at_dropout(network)) is not None:
            return found
        found = _before_last_linear(network, trial, images, logits)
    return found or SplitNetwork(network, nn.Identity(), nn.Sequential(nn.Identity()))


class _Double(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return 2 * features


def _at_dropout(network: nn.Sequential) -> SplitNetwork | None:
    places = dropout_places(network)
    if len(places) != 1 or places[0][0] is not network:
        return None
    layers, at = list(network), list(network).index(places[0][2])
    return SplitNetwork(nn.Sequential(*layers[:at]), layers[at], nn.Sequential(*layers[at + 1 :]))


def _before_last_linear(
    network: nn.Module, trial: nn.Module, images: Tensor, logits: Tensor
) -> SplitNetwork | None:
    called: list[str] = []
    for name, module in trial.named_modules():
        if name and isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: called.append(name))
    trial(images)
    if not called:
        return None
    last = called[-1]
    linear, trial_linear = network.get_submodule(last), trial.get_submodule(last)
    trial.set_submodule(last, nn.Identity())
    try:
        features = trial(images)
    except Exception:
        return None  # the network looks into that layer
    if not (isinstance(features, Tensor) and features.ndim == 2 and len(features) == len(images)):
        return None
    if features.shape[1] != trial_linear.in_features or not torch.allclose(trial_linear(features), logits):
        return None
    network.set_submodule(last, nn.Identity())
    return SplitNetwork(network, nn.Identity(), nn.Sequential(linear))
