"""Measuring the data spec of the known images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median_low

import torch
from torch import Tensor

from osr_lightning.data.stream import Images
from osr_lightning.images.ahead import processors
from osr_lightning.images.decode import opened, pil_to_array

LARGEST = 64  # pixels a side that are chosen without being asked; more is the user's choice
_COLOURED = 16  # levels between the channels of a pixel that is not grey
_COLOUR_SHARE = 0.01  # of the images that make a set one of colour
_PROBED = 200  # files that are looked at
_MEASURED = 10_000  # streamed images that mean and deviation are measured on


def natural_shape(images: Tensor) -> tuple[int, int]:
    """Channels (1 or 3) and size in pixels that suit images ``(N, C, H, W)`` uint8.

    The shorter side, at most ``LARGEST``. Colour if in one image of a hundred some pixel is coloured.
    """
    sample = images[:: max(1, len(images) // 2000)]
    channels = 3 if images.shape[1] == 3 and _coloured(sample) >= _COLOUR_SHARE else 1
    return channels, min(*images.shape[2:], LARGEST)


def natural_file_shape(files: Sequence[Path]) -> tuple[int, int]:
    """`natural_shape` of image files, by the median of some of them; unreadable ones do not count."""
    chosen = files[:: max(1, len(files) // _PROBED)]
    with ThreadPoolExecutor(processors(4)) as pool:
        found = [shape for shape in pool.map(_probe, chosen) if shape is not None]
    if not found:
        return 1, LARGEST
    coloured = sum(colour for colour, _ in found) / len(found)
    return 3 if coloured >= _COLOUR_SHARE else 1, min(median_low(size for _, size in found), LARGEST)


def _probe(file: Path) -> tuple[bool, int] | None:
    try:
        with opened(file) as image:
            size = image.size
            image.draft(None, (LARGEST, LARGEST))  # a JPEG at an eighth of its size: the colours will do
            if image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I"):
                return False, min(size)
            return _coloured(torch.from_numpy(pil_to_array(image))[None]) > 0, min(size)
    except Exception:  # reading it in earnest will say what is wrong
        return None


def _coloured(images: Tensor) -> float:
    """The share of images ``(N, 3, H, W)`` in which some pixel is coloured."""
    if images.shape[1] == 1:
        return 0.0
    spread = images.amax(1) - images.amin(1)  # (N, H, W)
    return float((spread.flatten(1).amax(1) > _COLOURED).double().mean())


def mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels ``(N, C, H, W)`` uint8, on the scale [0, 1].

    Of images on disk, 10,000 evenly spaced ones. A channel without variance has the deviation 1.
    """
    count = len(images)
    rows = torch.arange(count)
    if not isinstance(images, Tensor):
        rows = rows[:: max(1, count // _MEASURED)]
    total = squares = torch.zeros(images.shape[1], dtype=torch.int64)
    for part in torch.split(rows, 1000):
        values = images[part].to(torch.int32)
        total = total + values.sum((0, 2, 3))
        squares = squares + values.square().sum((0, 2, 3))
    pixels = len(rows) * images.shape[2] * images.shape[3]
    # in Python's whole numbers, which neither round nor overflow
    mean = [value / pixels / 255 for value in total.tolist()]
    std = [
        math.sqrt(square * pixels - value**2) / pixels / 255
        for value, square in zip(total.tolist(), squares.tolist(), strict=True)
    ]
    return tuple(round(value, 6) for value in mean), tuple(round(value, 6) or 1.0 for value in std)
