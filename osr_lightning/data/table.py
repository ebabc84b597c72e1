"""Several image sets as one data set that is served in whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain as chain_items
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from osr_lightning.data.batch import Batch
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.stream import Images, chain


class ImageTable(Dataset[Batch]):
    """Several image sets end to end, held as ``uint8`` and served in whole batches.

    Args:
        images: ``(N, C, H, W)`` uint8, in memory or streamed from disk.
        labels: ``(N,)`` int64.
        sources: ``(N,)`` int64, which set each image belongs to.
        files: ``N`` names of the files they were read from, empty where there is none; or none at all.
    """

    def __init__(self, images: Images, labels: Tensor, sources: Tensor, files: Sequence[str] = ()) -> None:
        self.images, self.labels, self.sources, self.files = images, labels, sources, files

    @classmethod
    def of(cls, sets: Sequence[ImageSet], labels: Sequence[int | None] = (None,)) -> ImageTable:
        """One table of several sets, in that order.

        Args:
            sets: the images.
            labels: per set the label of all its images; None: they keep their own.
        """
        sizes = [len(found) for found in sets]
        chosen = [
            found.labels if label is None else torch.full((len(found),), label)
            for found, label in zip(sets, labels, strict=True)
        ]
        sources = torch.repeat_interleave(torch.arange(len(sets)), torch.tensor(sizes))
        files = [found.files or ("",) * len(found) for found in sets]
        named = tuple(chain_items(*files)) if any(found.files for found in sets) else ()
        return cls(chain([found.images for found in sets]), torch.cat(chosen), sources, named)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """One image as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather per field for a whole batch, instead of one Python call per image."""
        row = torch.tensor(indices)
        images = self.images
        # index_select is several times quicker than indexing
        image = images.index_select(0, row) if isinstance(images, Tensor) else images[row]
        return Batch(image, self.labels.index_select(0, row), self.sources.index_select(0, row), row)


def whole_batch(batch: Any) -> Any:  # noqa: ANN401 - `__getitems__` gives a batch where a list is expected
    """The collate function of batches that are whole already."""
    return batch


def even_batch_size(images: int, processes: int, batch_size: int) -> int:
    """The smallest size from ``batch_size`` on that gives every process equally many batches.

    Unpadded shards may differ by one image, hence by one batch; DDP synchronises the network's buffers
    at each validation batch of a fit, so the process with one batch more would wait for ever.
    """
    smaller, larger = images // processes, -(-images // processes)
    while -(-smaller // batch_size) != -(-larger // batch_size):
        batch_size += 1
    return batch_size
