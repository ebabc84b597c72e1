"""Monte-Carlo dropout: many stochastic passes for about the price of one."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.dropout import (
    MaskedDropout,
    Pass,
    draw_masks,
    dropout_places,
    mask_dropouts,
    mask_shape,
    running,
)
from osr_lightning.models.fold import chunk_size, fold, is_foldable, mixes_images
from osr_lightning.models.modes import evaluating
from osr_lightning.models.networks import SplitNetwork
from osr_lightning.models.sampling import LogitSampler, Sampled

MaskKind: TypeAlias = Literal["shared", "independent"]
Method: TypeAlias = Literal["auto", "fold", "trunk", "loop"]
MAX_SAMPLES = 10_000
_MOST_MASKS = 2**28  # numbers in all of them, 1 GiB


class MCDropout(LogitSampler):
    """Monte-Carlo dropout (Gal & Ghahramani, ICML 2016): ``S`` passes with dropout on, whatever the mode.

    A batch norm in eval mode stays there. With ``shared`` masks an image's logits do not depend on the batch
    it is in, and nothing is drawn after the construction, so that several threads may ask at once. A
    dropout deep inside the network takes the plain loop, one pass a sample.

    Args:
        network: with at least one active dropout. Its dropouts inside trunk and head are replaced by
            `MaskedDropout`.
        input_shape: ``(C, H, W)`` of an image.
        num_samples: ``S``, at least 1.
        masks: ``shared``: one mask per sample, the same for all images; ``independent``: one per sample and
            image, drawn at each call.
        mask_seed: of the masks; with more samples from the same seed, the first stay the same.
        method: ``fold``: see `osr_lightning.models.fold`. ``trunk``: repeat the head alone. ``loop``:
            repeat the whole network, the reference for the others. ``auto``: the fastest.

    Raises:
        UserError: if an argument is out of range, or the network has no dropout, one of another kind or
            with ``p = 1``, or cannot be folded though ``method`` says so.
    """

    masks: Tensor

    def __init__(
        self,
        network: SplitNetwork,
        input_shape: Sequence[int],
        num_samples: int = 10,
        masks: MaskKind = "shared",
        mask_seed: int = 0,
        method: Method = "auto",
    ) -> None:
        super().__init__()
        if num_samples < 1:
            raise UserError(f"model.num_samples must be at least 1, got {num_samples}")
        if masks not in get_args(MaskKind):
            raise UserError(f"model.masks must be one of {', '.join(get_args(MaskKind))}, got {masks!r}")
        if method not in get_args(Method):
            raise UserError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
        if num_samples > MAX_SAMPLES or not -(2**63) <= mask_seed < 2**63:
            raise UserError(
                f"{num_samples} samples of seed {mask_seed} cannot be drawn: give model.num_samples at most "
                f"{MAX_SAMPLES:,}, and a seed of 64 bits"
            )
        places = dropout_places(network)
        if not places:
            raise UserError(
                "MC dropout needs a network with dropout, and this one has none; "
                "give it one, or use BaselineClassifier"
            )
        self.network = network
        self.num_samples = num_samples
        self.shared = masks == "shared"
        self.generator = torch.Generator().manual_seed(mask_seed)
        self.mask_seed = mask_seed
        self.deep = len(places) > 1 or places[0][:2] != (network, "dropout") or method == "loop"
        if self.deep:
            mask_dropouts(network)
        self.folded = not self.deep and method != "trunk" and is_foldable(network)
        if method == "fold" and not self.folded:
            raise UserError("method fold needs one dropout of channels, before nn.Flatten and nn.Linear")
        if self.shared:
            self._fix_masks(torch.zeros(1, *input_shape))
            self.restart()

    def _fix_masks(self, image: Tensor) -> None:
        """Draw the masks of all samples, for shapes seen in a pass over one image."""
        watch = Pass(shapes=[])
        image = image.to(next(self.network.parameters(), image))
        # in eval mode, as a batch norm must not see this image
        with evaluating(self.network), torch.no_grad(), running(watch):
            features = self.network(image) if self.deep else self.network.trunk(image)
        if not self.deep:
            dropout = self.network.dropout
            shape = mask_shape(dropout, features)  # type: ignore[arg-type]
            self._refuse_many([shape])
            drawn = draw_masks((self.num_samples, *shape), dropout.p, self.generator)  # type: ignore[arg-type]
            self.register_buffer("masks", drawn)
            return
        # sample by sample, which keeps the first masks when more samples are asked for
        calls = watch.shapes or []
        self._refuse_many([shape for _, shape in calls])
        drawn_by_call: list[list[Tensor]] = [[] for _ in calls]
        for _ in range(self.num_samples):
            for masks, (dropout, shape) in zip(drawn_by_call, calls, strict=True):
                masks.append(draw_masks(shape, dropout.original.p, self.generator))
        fixed: dict[MaskedDropout, list[Tensor]] = {}
        for masks, (dropout, _) in zip(drawn_by_call, calls, strict=True):
            fixed.setdefault(dropout, []).append(torch.stack(masks))
        for dropout, stacked in fixed.items():
            dropout.fix(stacked)

    def _refuse_many(self, shapes: Sequence[tuple[int, ...]]) -> None:
        if self.num_samples * sum(map(math.prod, shapes)) > _MOST_MASKS:
            raise UserError(
                f"the masks of {self.num_samples} samples take more than a GiB: lower model.num_samples, or "
                "take model.masks independent"
            )

    def restart(self) -> None:
        """Draw independent masks from the seed's beginning again."""
        self.generator.manual_seed(self.mask_seed)

    def sample(self, images: Tensor, layers: Collection[str] = ()) -> Sampled:
        """Logits ``(S, B, K)``, differentiable where grad is on, and features of a pass without dropout."""
        if self.deep:
            return self._loop(images, layers)
        features, early = self._trunk(images, layers)
        dropout, samples = self.network.dropout, self.num_samples
        if self.shared:
            masks = self.masks.unsqueeze(1)  # (S, 1, ...)
        else:
            shape = (samples, len(images), *mask_shape(dropout, features))  # type: ignore[arg-type]
            masks = draw_masks(shape, dropout.p, self.generator).to(features.device)  # type: ignore[arg-type]
        if layers:  # the pass without dropout is one more sample
            masks = torch.cat([masks, torch.ones_like(masks[:1])])
        keep = samples if layers else None
        # folding saves the multiplications of all but one sample, within each channel
        if self.folded and samples > 1 and features.shape[2:].numel() > 1:
            logits, late = self._fold(features, masks.flatten(2), keep)
        else:
            logits, late = self._share_trunk(features, masks, keep)
        return Sampled(logits[:samples], early | late)

    def _fold(self, features: Tensor, masks: Tensor, keep: int | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``masks`` is ``(s, 1 or B, C)``."""
        if torch.compiler.is_compiling():
            return self._finish(fold(self.network.head, features, masks.transpose(0, 1)), 2, keep, samples=1)
        width = cast(nn.Linear, self.network.head[1]).out_features
        size = chunk_size(features, max(len(masks), features.shape[1]) * width)
        masks = masks.transpose(0, 1)  # (1 or B, s, C)
        parts = []
        for start in range(0, max(1, len(features)), size):  # once for an empty batch: it has a shape too
            chunk = slice(start, start + size)
            own = masks if len(masks) == 1 else masks[chunk]
            hidden = fold(self.network.head, features[chunk], own)
            parts.append(self._finish(hidden, 2, keep, samples=1))
        late = {name: torch.cat([kept[name] for _, kept in parts]) for name in parts[0][1]}
        return torch.cat([logits for logits, _ in parts], dim=1), late

    def _share_trunk(
        self, features: Tensor, masks: Tensor, keep: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``masks`` is ``(s, 1 or B, ...)``."""
        if torch.compiler.is_compiling():
            return self._finish(features * masks.to(features), 0, keep)
        samples = 1 if mixes_images(self.network.head) else chunk_size(features, features.numel())
        logits: list[Tensor] = []
        late: dict[str, Tensor] = {}
        for start in range(0, len(masks), samples):
            some = masks[start : start + samples].to(features)
            here = None if keep is None or not start <= keep < start + samples else keep - start
            found, kept = self._finish(features * some, 0, here)
            late |= kept
            logits.append(found)
        return torch.cat(logits), late

    def _loop(self, images: Tensor, layers: Collection[str]) -> Sampled:
        logits = []
        generator = None if self.shared else self.generator
        for sample in range(self.num_samples):
            with running(Pass(sample, generator)):
                logits.append(self.network(images))
        features: dict[str, Tensor] = {}
        if layers:
            with running(Pass()):
                trunk, features = self._trunk(images, layers)
                features |= self._finish(trunk.unsqueeze(0), 0, 0)[1]
        return Sampled(torch.stack(logits), features)


def draws_anew(module: nn.Module) -> bool:
    """Whether something in a module draws other masks for every image, so that no answer is given twice."""
    return any(isinstance(part, MCDropout) and not part.shared for part in module.modules())
