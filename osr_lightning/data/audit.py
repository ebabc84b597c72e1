"""The leak audit: images that choose a threshold must not be images that judge it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor


def overlaps(held_out: Mapping[str, Tensor], test: Mapping[str, Tensor]) -> list[str]:
    """Count the images that two collections share, after preprocessing, pixel for pixel.

    Args:
        held_out: set name -> validation or calibration images ``(N, C, H, W)`` uint8.
        test: set name -> test images of the same size.

    Returns:
        One phrase per pair of sets that share an image, with the count; empty where there is no leak.
    """
    keys = {name: _keys(images) for name, images in test.items()}
    found = []
    for name, images in held_out.items():
        mine = _keys(images)
        for other, theirs in keys.items():
            if shared := len(mine & theirs):
                found.append(f"{shared} of {name} are in {other}")
    return found


def _keys(images: Tensor) -> set[bytes]:
    rows = np.ascontiguousarray(images.numpy()).reshape(len(images), -1)
    return {row.tobytes() for row in rows}
