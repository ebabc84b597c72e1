"""What a recogniser of a frozen backbone keeps of the known images it was made of: features and labels.

With them its last layer can be fitted again without the pictures, and an image can be put beside its nearest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError

_DIGEST = 16  # bytes
_MOST_SIDE = 64  # pixels of a small picture
_MOST_NAME = 4096  # characters of a file's name
_HALF = 60_000.0  # features above it are kept as float32: float16 ends at 65,504

# field -> number of axes and types
_LAYOUT = {
    "features": (2, (torch.float16, torch.float32)),
    "labels": (1, (torch.int64,)),
    "held_out": (1, (torch.bool,)),
    "digests": (2, (torch.uint8,)),
    "thumbnails": (4, (torch.uint8,)),
    "predicted": (1, (torch.int64,)),
    "scores": (1, (torch.float64,)),
}
_MAY_LACK = ("predicted", "scores")


@dataclass(frozen=True)
class KnownImages:
    """``N`` known images.

    Attributes:
        features: ``(N, D)`` float16, or float32 where they are large; of the backbone, before anything else.
        labels: ``(N,)`` int64 in ``0 .. K-1``.
        held_out: ``(N,)`` bool, whether it was a validation image.
        digests: ``(N, 16)`` uint8, of each image's prepared pixels.
        thumbnails: small pictures ``(N, 3, s, s)`` uint8.
        files: ``N`` names, empty where there is none.
        weight_decay: of the last layer, that suits these images; None where it is not known.
        predicted: ``(N,)`` int64, the class that a fit without the image names; None where there were no such
            fits.
        scores: ``(N,)`` float64, its deciding score by the same.
    """

    features: Tensor
    labels: Tensor
    held_out: Tensor
    digests: Tensor
    thumbnails: Tensor
    files: list[str]
    weight_decay: float | None = None
    predicted: Tensor | None = None
    scores: Tensor | None = None

    def __len__(self) -> int:
        """``N``."""
        return len(self.labels)

    @property
    def size(self) -> int:
        """Bytes that they take."""
        tensors = [part for part in vars(self).values() if isinstance(part, Tensor)]
        return sum(part.nbytes for part in tensors) + sum(map(len, self.files))

    def where(self, mask: Tensor) -> KnownImages:
        """Those of ``mask`` ``(N,)`` bool."""
        mask = mask.cpu()
        files = [name for name, there in zip(self.files, mask.tolist(), strict=True) if there]
        parts: dict[str, Any] = {n: part[mask] for n, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, files=files, **parts)

    def joined(self, other: KnownImages) -> KnownImages:
        """These and then others, of one backbone, about which nothing was said yet."""
        return KnownImages(
            kept_features(torch.cat([self.features.float(), other.features.float()])),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.held_out, other.held_out]),
            torch.cat([self.digests, other.digests]),
            torch.cat([self.thumbnails, other.thumbnails]),
            [*self.files, *other.files],
            self.weight_decay,
        )


def kept_features(features: Tensor) -> Tensor:
    """Features ``(N, D)`` of any precision, brought to the one that is kept."""
    small = not features.numel() or float(features.abs().max()) < _HALF
    return (features.half() if small else features.float()).cpu()


_FIELDS = {field.name for field in fields(KnownImages)}


def to_plain(known: KnownImages | None) -> dict[str, Any] | None:
    """What a checkpoint keeps."""
    return None if known is None else dict(vars(known))


def from_plain(kept: object, spec: DataSpec) -> KnownImages | None:
    """The inverse of `to_plain`; of a file that keeps none, None.

    Args:
        kept: whatever a stranger's file holds in their place.
        spec: of the known images.

    Raises:
        UserError: where it is something else.
    """
    if kept is None:
        return None
    wrong = UserError(
        "what it keeps of its known images is damaged: osr calibrate --ckpt_path CKPT --model.keep_features "
        "false writes a checkpoint without it"
    )
    if not isinstance(kept, Mapping) or kept.keys() != _FIELDS:
        raise wrong
    files = kept["files"]
    if not isinstance(files, list) or not all(isinstance(n, str) and len(n) <= _MOST_NAME for n in files):
        raise wrong
    decay = kept["weight_decay"]
    if decay is not None and not (isinstance(decay, float) and 0 <= decay < math.inf):
        raise wrong
    count = len(files)
    for name, (axes, kinds) in _LAYOUT.items():
        value = kept[name]
        if value is None and name in _MAY_LACK:
            continue
        # one number of a file may be repeated to any size: what is not contiguous is none of ours
        if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_contiguous():
            raise wrong
        if value.ndim != axes or len(value) != count or value.dtype not in kinds:
            raise wrong
    labels, features, small = kept["labels"], kept["features"], kept["thumbnails"]
    sides = (3, *small.shape[2:])
    if kept["digests"].shape[1:] != (_DIGEST,) or small.shape[1:] != sides or max(sides) > _MOST_SIDE:
        raise wrong
    named = [] if kept["predicted"] is None else kept["predicted"].tolist()
    if not features.isfinite().all() or not {*labels.tolist(), *named} <= {*range(spec.num_classes)}:
        raise wrong
    return KnownImages(**kept)
