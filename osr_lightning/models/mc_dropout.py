"""MC dropout: many stochastic passes for about the price of one.

What comes before the first dropout is the same in every pass, so it runs once. After a *channel* dropout,
the first linear layer is a sum over channels, ``W x = sum_c m_c (W_c x_c)``: the products ``W_c x_c`` are
worked out once per image, and every further sample is one row of a small matrix product with the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.networks import SplitNetwork
from osr_lightning.models.replay import Tape, patched

MaskKind: TypeAlias = Literal["shared", "independent"]
Method: TypeAlias = Literal["auto", "fold", "trunk", "loop"]
Dropout: TypeAlias = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d

# activations of a chunk, in elements: what stays in cache on a CPU, and 64 MB of float32 elsewhere
_CPU_CHUNK = 2**19
_TRUNK_IMAGES = 128  # the most that go through the trunk at once on a CPU
_GPU_CHUNK = 2**24


def sample_logits(
    network: nn.Module,
    images: Tensor,
    num_samples: int,
    *,
    masks: MaskKind = "shared",
    generator: torch.Generator | None = None,
    method: Method = "auto",
) -> Tensor:
    """Logits of ``num_samples`` passes with dropout on, whatever mode the network is in.

    No module changes its mode: a batch norm in eval mode stays there. With the same masks the numbers are
    those of the plain loop, up to rounding. A network whose dropouts all have ``p = 0`` gives one pass,
    expanded to ``S`` without copying.

    Fast for a `SplitNetwork` (and for an ``nn.Sequential`` with one dropout in it). Any other network works
    too: the outputs of the modules that end before the first dropout begins are kept and replayed, for which
    a module must hand on its result by returning it. For the duration of the call the modules of such a
    network are patched, so it must not run in another thread. Dimension 0 of what enters a dropout must be
    the batch. Only ``nn.Dropout`` and ``nn.Dropout1d/2d/3d`` are seen: calls of ``F.dropout`` are not.

    Args:
        network: images -> logits ``(B, K)``.
        images: ``(B, C, H, W)``, on the network's device; ``B`` may be 0.
        num_samples: ``S``, at least 1.
        masks: ``shared``: one mask per sample, the same for all images, so that an image's logits do not
            depend on the batch it is in; seed the generator afresh for every batch. ``independent``: one
            mask per sample and image.
        generator: a CPU generator, the only source of the masks, so every device decides alike; with more
            samples from the same seed, the first stay the same. ``None``: a new, randomly seeded one.
        method: ``fold``: as described at the top of this module, where the head begins with ``nn.Flatten``
            and ``nn.Linear`` (hooks on these two do not fire). ``trunk``: share what comes before the first
            dropout. ``loop``: repeat the whole network, the reference for the others. ``auto``: the fastest.

    Returns:
        ``(S, B, K)``, differentiable where grad is on.

    Raises:
        UserError: if an argument is out of range, or the network has a dropout of another kind or with
            ``p = 1``, or cannot be folded though ``method`` says so.
    """
    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1, got {num_samples}.")
    if masks not in get_args(MaskKind):
        raise UserError(f"masks must be one of {', '.join(get_args(MaskKind))}, got {masks!r}.")
    if method not in get_args(Method):
        raise UserError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    elif generator.device.type != "cpu":
        raise UserError(f"generator must be a CPU generator, got one on {generator.device}.")
    dropouts = active_dropouts(network)
    if not dropouts:
        return cast(Tensor, network(images)).expand(num_samples, -1, -1)

    source = _Masks(masks == "shared", generator)
    split = _as_split(network, dropouts)
    foldable = split is not None and _is_foldable(split)
    if method == "fold" and not foldable:
        raise UserError(
            "method='fold' needs a SplitNetwork whose one dropout drops channels and whose head begins with "
            f"nn.Flatten and nn.Linear, which {type(network).__name__} is not; use method='auto'."
        )
    if split is None or method == "loop":
        return _repeat(network, dropouts, images, num_samples, source, replay=method != "loop")
    features = _run_trunk(split.trunk, images)  # (B, C, ...), or of any shape that starts with B
    # folding saves the multiplications of all but one sample, within each channel
    worthwhile = foldable and num_samples > 1 and features.shape[2:].numel() > 1
    if method == "fold" or (method == "auto" and worthwhile):
        return _fold(split.head, dropouts[0], features, num_samples, source)
    return _share_trunk(split.head, dropouts[0], features, num_samples, source)


def active_dropouts(network: nn.Module) -> list[Dropout]:
    """The network's dropout modules with ``p > 0``, each once.

    Raises:
        UserError: if one is of a kind that `sample_logits` cannot sample, or has ``p = 1``.
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


@dataclass(frozen=True)
class _Masks:
    """Draws the masks, sample by sample: the order that keeps the first ones when more are asked for."""

    shared: bool
    generator: torch.Generator

    def draw(self, dropout: Dropout, features: Tensor, num_samples: int) -> Tensor:
        """0 or ``1 / (1 - p)``, ``(num_samples, 1 or B, ...)``: factors of ``features (B, ...)``."""
        if isinstance(dropout, nn.Dropout):
            per_image = tuple(features.shape[1:])
        else:
            per_image = (features.shape[1], *[1] * (features.ndim - 2))
        shape = (num_samples, 1 if self.shared else len(features), *per_image)
        # device and dtype are named because the defaults of both can be changed from outside
        keep = torch.rand(shape, generator=self.generator, device="cpu", dtype=torch.float32) >= dropout.p
        return keep.to(features.device).to(features.dtype) / (1 - dropout.p)


def _as_split(network: nn.Module, dropouts: list[Dropout]) -> SplitNetwork | None:
    """The network as trunk, dropout and head with that one dropout active, or None."""
    if len(dropouts) != 1:
        return None
    if type(network) is nn.Sequential and dropouts[0] in network.children():
        layers = list(network)
        if layers.count(dropouts[0]) == 1:
            at = layers.index(dropouts[0])
            return SplitNetwork(nn.Sequential(*layers[:at]), layers[at], nn.Sequential(*layers[at + 1 :]))
    # by its forward, not by its attributes: another forward may do more than these three
    if isinstance(network, SplitNetwork) and type(network).forward is SplitNetwork.forward:
        return network if network.dropout is dropouts[0] else None
    return None


def _is_foldable(network: SplitNetwork) -> bool:
    head = network.head
    return (
        not isinstance(network.dropout, nn.Dropout)
        and len(head) >= 2
        # exactly these: a subclass may compute something else
        and type(head[0]) is nn.Flatten
        and (head[0].start_dim, head[0].end_dim) == (1, -1)
        and type(head[1]) is nn.Linear
        and not _mixes_images(head)
    )


def _mixes_images(head: nn.Module) -> bool:
    """Whether a batch norm in training mode makes the logits depend on which images run together."""
    return any(isinstance(m, nn.modules.batchnorm._NormBase) and m.training for m in head.modules())


def _run_trunk(trunk: nn.Module, images: Tensor) -> Tensor:
    """The trunk's features, on a CPU a few images at a time.

    The first activations of a thousand images are tens of megabytes: more than a cache holds, and by default
    more than the C library keeps from one batch to the next.
    """
    if images.device.type != "cpu" or len(images) <= _TRUNK_IMAGES or _mixes_images(trunk):
        return cast(Tensor, trunk(images))
    return torch.cat([trunk(chunk) for chunk in torch.split(images, _TRUNK_IMAGES)])


def _chunk(features: Tensor, elements_each: int) -> int:
    """How many parts of ``elements_each`` activations to run at once."""
    budget = _CPU_CHUNK if features.device.type == "cpu" else _GPU_CHUNK
    return max(1, budget // max(1, elements_each))


def _fold(head: nn.Sequential, dropout: Dropout, features: Tensor, num_samples: int, masks: _Masks) -> Tensor:
    mask = masks.draw(dropout, features, num_samples).flatten(2).transpose(0, 1)  # (1 or B, S, C)
    linear, rest = cast(nn.Linear, head[1]), head[2:]
    batch, channels, hidden = len(features), features.shape[1], linear.out_features
    length = linear.in_features // channels
    # (C, B, L); copied because bmm is up to ten times slower on the strides it has otherwise
    inputs = features.reshape(batch, channels, length).transpose(0, 1).contiguous()
    weight = linear.weight.view(hidden, channels, length).permute(1, 2, 0)  # (C, L, hidden)
    bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(hidden)
    size = _chunk(features, max(num_samples, channels) * hidden)
    logits = []
    for start in range(0, max(1, batch), size):  # once for an empty batch: its logits have a shape too
        chunk = slice(start, start + size)
        products = torch.bmm(inputs[:, chunk], weight).transpose(0, 1)  # (b, C, hidden)
        mask_chunk = mask.expand(batch, -1, -1)[chunk]  # (b, S, C)
        activations = torch.baddbmm(bias, mask_chunk, products)  # (b, S, hidden)
        logits.append(torch.unflatten(rest(activations.flatten(0, 1)), 0, activations.shape[:2]))
    return torch.cat(logits).transpose(0, 1).contiguous()


def _share_trunk(
    head: nn.Sequential, dropout: Dropout, features: Tensor, num_samples: int, masks: _Masks
) -> Tensor:
    size = 1 if _mixes_images(head) else _chunk(features, features.numel())
    logits = []
    for start in range(0, num_samples, size):
        samples = min(size, num_samples - start)
        dropped = features * masks.draw(dropout, features, samples)  # (s, B, ...)
        logits.append(torch.unflatten(head(dropped.flatten(0, 1)), 0, (samples, len(features))))
    return torch.cat(logits)


def _repeat(
    network: nn.Module,
    dropouts: list[Dropout],
    images: Tensor,
    num_samples: int,
    masks: _Masks,
    *,
    replay: bool,
) -> Tensor:
    """One pass per sample; with ``replay``, what ends before the first dropout begins runs only once."""
    tape = Tape()

    def drop(dropout: Dropout, features: Tensor) -> Tensor:
        tape.dropped = True
        return features * masks.draw(dropout, features, 1)[0]

    forwards: dict[nn.Module, Callable[..., Any]] = {}
    if replay:
        forwards.update((module, partial(tape.run, module, module.forward)) for module in network.modules())
    forwards.update((dropout, partial(drop, dropout)) for dropout in dropouts)
    logits = []
    with patched(forwards):
        for _ in range(num_samples):
            logits.append(network(images))
            tape.rewind()
    return torch.stack(logits)
