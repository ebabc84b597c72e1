"""What one batch of images carries."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of ``B`` images and where each of them came from.

    Attributes:
        image: ``(B, C, H, W)`` uint8 in ``[0, 255]``.
        label: ``(B,)`` int64, the class in ``0 .. K-1``, or ``K`` for an unknown image.
        source: ``(B,)`` int64, index into the datamodule's source names; 0 is the known set.
        row: ``(B,)`` int64, the image's position in its data set, unique within it.
    """

    image: Tensor
    label: Tensor
    source: Tensor
    row: Tensor
