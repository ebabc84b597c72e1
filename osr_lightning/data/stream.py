"""Image sets too large for memory: read from disk when a batch asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor


class StreamedImages:
    """``N`` images on disk that are indexed like a tensor ``(N, C, H, W)`` of uint8.

    Args:
        files: the ``N`` paths, or whatever else ``read`` finds an image by.
        read: turns some of them into ``(n, C, H, W)`` uint8.
        shape: ``(C, H, W)``.
        quick: whether reading is no more than copying, which a worker process only delays.
    """

    def __init__(
        self,
        files: Sequence[Any],
        read: Callable[[Sequence[Any]], Tensor],
        shape: Sequence[int],
        quick: bool = False,
    ) -> None:
        self.files, self.read, self.quick = files, read, quick
        self.shape: Sequence[int] = (len(files), *shape)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.files)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Read the images at ``rows`` ``(n,)``."""
        return self.read([self.files[row] for row in rows.tolist()])

    def take(self, rows: Tensor) -> StreamedImages:
        """The images at ``rows`` ``(n,)``, still on disk."""
        return StreamedImages(
            [self.files[row] for row in rows.tolist()], self.read, self.shape[1:], self.quick
        )


class ChainedImages:
    """Image sets end to end, some of them streamed, indexed like one tensor."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self.parts = parts
        self.ends = torch.tensor(list(accumulate(len(part) for part in parts)))
        self.shape: Sequence[int] = (int(self.ends[-1]), *parts[0].shape[1:])

    def __len__(self) -> int:
        """The number of images."""
        return int(self.ends[-1])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The images at ``rows`` ``(n,)``, in that order."""
        owner = torch.searchsorted(self.ends, rows, right=True)
        found: list[Tensor] = []
        order: list[Tensor] = []
        for index, part in enumerate(self.parts):
            mine = (owner == index).nonzero().flatten()
            if len(mine):
                found.append(part[rows[mine] - (self.ends[index] - len(part))])
                order.append(mine)
        return torch.cat(found)[torch.cat(order).argsort()]


Images: TypeAlias = Tensor | StreamedImages | ChainedImages


def chain(parts: Sequence[Images]) -> Images:
    """Put image sets end to end: in memory where all of them are."""
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(parts) else ChainedImages(parts)


def select(images: Images, rows: Tensor) -> Images:
    """The images at ``rows`` ``(n,)``, without reading streamed ones."""
    return images.take(rows) if isinstance(images, StreamedImages) else images[rows]


def kept(images: Images, name: str) -> Tensor | None:
    """What images keep of each under that name, ``(N, ...)``; None where some of them keep none."""
    found = getattr(images, name, None)
    if isinstance(found, Tensor):
        return found
    parts = [kept(part, name) for part in images.parts] if isinstance(images, ChainedImages) else []
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there and len(there) == len(parts) else None
