"""torchvision's classifiers by name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.networks import register

_log = logging.getLogger("osr_lightning")


def classifier_names() -> list[str]:
    """All of torchvision's classifiers."""
    from torchvision import models

    return list(models.list_models(module=models))


@register
class Torchvision(nn.Module):
    """One of torchvision's classifiers, its first layer made for the images' channels.

    Args:
        num_classes: ``K``, the number of known classes.
        in_channels: ``C``; the weights of a first layer for colour are summed up for grey images.
        name: as in ``torchvision.models``, such as resnet18.
        weights: a file of weights (a state dict), or one of torchvision's own, such as DEFAULT, which it
            downloads. A last layer for another number of classes is left out. A checkpoint does not need them
            again.

    Raises:
        UserError: if there is no such classifier, or the weights are not its own.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, name: str = "resnet18", weights: str | None = None
    ) -> None:
        super().__init__()
        self.label = name
        from torchvision import models

        if name not in classifier_names():
            raise UserError(f"torchvision has no classifier {name!r}; see torchvision.models.list_models()")
        build = cast(Callable[..., nn.Module], models.get_model_builder(name))
        self.network = build(num_classes=num_classes, weights=None)
        if weights is not None:
            path = Path(weights).expanduser()
            state = read_weights(path) if path.is_file() else published(name, weights)
            _fill(self.network, own_names(state, self.network.state_dict()), weights)
        take_channels(self.network, in_channels)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` -> logits ``(B, K)``."""
        logits = self.network(images)
        return cast(
            Tensor, logits[0] if isinstance(logits, tuple) else logits
        )  # Inception has two in training


def published(name: str, weights: str) -> dict[str, Any]:
    """A state dict of torchvision's own, which it downloads.

    Args:
        name: of the classifier.
        weights: as torchvision calls them, such as DEFAULT.

    Raises:
        UserError: if there are none of that name, or they cannot be had.
    """
    from torchvision import models

    try:
        chosen = models.get_model_weights(name)[weights]
    except KeyError as error:
        there = ", ".join(models.get_model_weights(name).__members__)
        raise UserError(
            f"model.network.weights {weights}: there is no such file; torchvision's for {name} are {there}"
        ) from error
    try:
        return dict(chosen.get_state_dict(progress=True, check_hash=True))
    except Exception as error:  # no network, no space: each has its own kind
        raise UserError(
            f"the weights {weights} of {name} cannot be downloaded ({error}): fetch {chosen.url} by other "
            "means and give model.network.weights the file"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of weights; nothing in the file is run.

    Raises:
        UserError: if it holds none, or NaN, or needs safetensors, which is not
            installed.
    """
    state = _content(path)
    for name in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no state dict of weights")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path} does not fit the network: {name!r} is no tensor")
        if value.is_floating_point() and value.isnan().any():
            raise UserError(f"{path}: {name} has values that are no numbers (NaN); give other weights")
    return {str(name): value for name, value in state.items()}


def _content(path: Path) -> object:
    """What a file of weights holds."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise UserError(f"{path} needs safetensors: pip install safetensors") from error
    except Exception as error:  # a damaged file can fail anywhere in a reader
        raise UserError(
            f"{path} is no readable file of weights ({type(error).__name__}); give a state dict, as "
            "torch.save(model.state_dict(), FILE) or safetensors write it"
        ) from error


def own_names(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """A state dict under a network's own names, where the network was part of a larger one as it was saved.

    What stands before the most of its names is taken off, and weights that have no such name are left out:
    ``module.`` of DataParallel, ``model.`` or ``net.`` of a LightningModule, beside which the weights of its
    loss may stand, and ``_orig_mod.`` of torch.compile wherever it is.

    Args:
        state: name -> weight.
        own: the network's own names.
    """
    state = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    names = {*own}
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in names:
                counts[name[: len(name) - len(".".join(parts[place:]))]] += 1
    prefix = max(counts, key=lambda one: (counts[one], -len(one)), default="")
    return {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}


def _fill(network: nn.Module, state: dict[str, Any], weights: str) -> None:
    """Take the weights, but for the parameters of a last layer of another size."""
    own = network.state_dict()
    other = [name for name, value in state.items() if name in own and own[name].shape != value.shape]
    last = [name for name, _ in network.named_parameters()][-2:]
    last += [
        f"{name}.{kind}"
        for name, m in network.named_modules()
        if isinstance(m, nn.Linear)
        for kind in ("weight", "bias")
    ]
    if strangers := [name for name in other if name not in last]:
        raise UserError(f"{weights} does not fit the network: {strangers[0]} has another shape")
    kept = {name: value for name, value in state.items() if name not in other}
    missing, unexpected = network.load_state_dict(kept, strict=False)
    if lost := [name for name in (*missing, *unexpected) if name not in other]:
        raise UserError(f"{weights} does not fit the network: {lost[0]} is on one side only")
    if other:
        _log.warning(
            "%s: the last layer has %d outputs, which are left out; the network learns a new one",
            weights,
            len(state[other[-1]]),
        )


def first_layer(network: nn.Module) -> tuple[str, nn.Conv2d] | None:
    """The name of the first convolution, and that; None where there is none."""
    found = ((name, one) for name, one in network.named_modules() if isinstance(one, nn.Conv2d))
    return next(found, None)


def take_channels(network: nn.Module, in_channels: int) -> None:
    """Let the first layer see images of so many channels, each as the mean over those of before."""
    found = first_layer(network)
    assert found is not None  # all of torchvision's classifiers begin with one
    name, first = found
    if first.in_channels == in_channels:
        return
    made = nn.Conv2d(
        in_channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    with torch.no_grad():
        summed = first.weight.sum(1, keepdim=True) / in_channels
        made.weight.copy_(summed.expand_as(made.weight))
        if first.bias is not None and made.bias is not None:
            made.bias.copy_(first.bias)
    network.set_submodule(name, made)
