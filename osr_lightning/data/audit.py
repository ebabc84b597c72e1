"""The leak audit: images that choose a threshold must not be images that judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from osr_lightning.data.stream import Images
from osr_lightning.errors import UserError


class Named(Protocol):
    """Images ``(N, C, H, W)`` uint8, and the files they were read from, if any."""

    @property
    def images(self) -> Images:
        """The images."""

    @property
    def files(self) -> Sequence[str]:
        """``N`` names, or none."""


def overlaps(held_out: Mapping[str, Named], test: Mapping[str, Named]) -> list[str]:
    """Count the images that two collections share, after preprocessing, pixel for pixel.

    Args:
        held_out: set name -> validation or calibration images.
        test: set name -> test images of the same size.

    Returns:
        One phrase per pair of sets that share an image, with the count and some of the files; empty where
        there is no leak.
    """
    keys = {name: _rows(images.images) for name, images in test.items()}
    found = []
    for name, images in held_out.items():
        mine = _rows(images.images)
        for other, theirs in keys.items():
            if shared := sorted(mine.keys() & theirs.keys(), key=mine.__getitem__):
                pairs = [(_file(images, mine[key]), _file(test[other], theirs[key])) for key in shared[:3]]
                named = ", ".join(f"{a} = {b}" for a, b in pairs if a and b)
                found.append(f"{len(shared)} of {name} are in {other}{f' ({named})' if named else ''}")
    return found


def _file(images: Named, row: int) -> str:
    return images.files[row] if images.files else ""


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


def pixel_digests(images: Images) -> list[bytes]:
    """16 bytes for each image that are equal where all pixels are."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for pixels in _pixels(images)
        for image in pixels
    ]


def _rows(images: Images) -> dict[bytes, int]:
    """Digest -> the row of an image that has it."""
    return {digest: row for row, digest in enumerate(pixel_digests(images))}


def _pixels(images: Images) -> Iterator[NDArray[np.uint8]]:
    """A thousand images at a time, as those on disk have to be read."""
    for start in range(0, len(images), 1000):
        rows = torch.arange(start, min(start + 1000, len(images)))
        yield np.ascontiguousarray(images[rows].numpy())
