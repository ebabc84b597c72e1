"""What every source gives, and the one way of holding images out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from osr_lightning.data.stream import Images, select

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ImageSet:
    """``N`` images and their classes.

    Attributes:
        images: ``(N, C, H, W)`` uint8, in memory or streamed from disk.
        labels: ``(N,)`` int64, indices into ``classes``.
        classes: The names of the classes.
        files: For folders one path per image, relative to the folder; else empty.
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def with_classes(self, classes: tuple[str, ...]) -> ImageSet:
        """The same images, labelled by the places of their classes' names in ``classes``."""
        place = torch.tensor([classes.index(name) for name in self.classes])
        return replace(self, labels=place[self.labels], classes=classes)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at ``indices`` ``(n,)``, in that order, with the same classes."""
        files = tuple(self.files[index] for index in indices.tolist()) if self.files else ()
        return replace(self, images=select(self.images, indices), labels=self.labels[indices], files=files)


def holdout(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices in two at random, in the same proportion within each class.

    From a class of ``n`` images ``fraction * n``, rounded, are held out: at least one if ``fraction``
    is not 0, and never all, so a class with a single image stays in the rest.

    Args:
        labels: ``(N,)`` int64.
        fraction: Share of each class to hold out, in ``[0, 1)``.
        seed: Seed of this split alone; the global random state is neither used nor changed.

    Returns:
        The indices of the rest and of the held-out images, each sorted.

    Raises:
        ValueError: ``fraction`` lies outside ``[0, 1)``.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must lie in [0, 1), not {fraction}")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        count = min(len(members) - 1, max(int(fraction > 0), round(fraction * len(members))))
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()
