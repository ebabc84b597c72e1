"""The leak audit: images that choose a threshold must not be images that judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from osr_lightning.data.stream import Images
from osr_lightning.errors import UserError


def overlaps(held_out: Mapping[str, Images], test: Mapping[str, Images]) -> list[str]:
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


def refuse_leaks(leaks: list[str], allowed: bool) -> None:
    """Stop where images that choose the threshold are among those of the test.

    Raises:
        UserError: unless that is allowed.
    """
    if leaks and not allowed:
        raise UserError(
            f"images that choose the threshold are also tested: {'; '.join(leaks)}; use other sets, "
            "or set data.allow_overlap true, which marks the results optimistic"
        )


def digest(images: Images) -> str:
    """A digest of the images ``(N, C, H, W)`` uint8 and their order, in hexadecimal."""
    whole = hashlib.blake2b(digest_size=16)
    for pixels in _pixels(images):
        whole.update(pixels.tobytes())
    return whole.hexdigest()


def _keys(images: Images) -> set[bytes]:
    return {
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for pixels in _pixels(images)
        for image in pixels
    }


def _pixels(images: Images) -> Iterator[NDArray[np.uint8]]:
    """A thousand images at a time, as those on disk have to be read."""
    for start in range(0, len(images), 1000):
        rows = torch.arange(start, min(start + 1000, len(images)))
        yield np.ascontiguousarray(images[rows].numpy())
