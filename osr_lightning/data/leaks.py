"""The leak audit: images that choose a threshold must not be images that judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osr_lightning.data.stream import Images, kept
from osr_lightning.errors import UserError

_BYTES = 16  # of a digest


class NamedImages(Protocol):
    """Images ``(N, C, H, W)`` uint8, and the files they were read from, if any."""

    @property
    def images(self) -> Images:
        """The images."""

    @property
    def files(self) -> Sequence[str]:
        """``N`` names, or none."""


def overlaps(
    held_out: Mapping[str, NamedImages],
    test: Mapping[str, NamedImages],
    few: Mapping[str, int] = MappingProxyType({}),
) -> list[str]:
    """Count the images that two collections share, after preprocessing, pixel for pixel.

    Args:
        held_out: set name -> validation or calibration images.
        test: set name -> test images of the same size.
        few: set name -> how many shared images of a test set are passed over; none if not given.

    Returns:
        One phrase per pair of sets that share an image, with the count and some of the files; empty where
        there is no leak.
    """
    keys = {name: _rows(images.images) for name, images in test.items()}
    found = []
    for name, images in held_out.items():
        mine = _rows(images.images)
        for other, theirs in keys.items():
            shared = sorted(mine.keys() & theirs.keys(), key=mine.__getitem__)
            if len(shared) > few.get(other, 0):
                pairs = [(_file(images, mine[key]), _file(test[other], theirs[key])) for key in shared[:3]]
                named = ", ".join(f"{a} = {b}" for a, b in pairs if a and b)
                found.append(f"{len(shared)} of {name} are in {other}{f' ({named})' if named else ''}")
    return found


def _file(images: NamedImages, row: int) -> str:
    return images.files[row] if images.files else ""


def refuse_leaks(leaks: list[str], allowed: bool) -> None:
    """Stop where images that made a classifier are among those that judge it.

    Raises:
        UserError: unless that is allowed.
    """
    if leaks and not allowed:
        raise UserError(
            f"images that train or choose the threshold are also tested: {'; '.join(leaks)}; take the "
            "copies out, use other sets, or set data.allow_overlap true, which marks the results optimistic"
        )


class ImageDigests(NamedTuple):
    """The images that made a checkpoint, 16 bytes each.

    Attributes:
        train: ``(N, 16)`` uint8, digests of those it was trained on.
        calibration: ``(M, 16)`` uint8, of those that chose its threshold.
    """

    train: Tensor
    calibration: Tensor

    def trained_on_too(self, train: Tensor) -> ImageDigests:
        """The same, and training images of an earlier fit."""
        joined = _unpacked(self.train) | _unpacked(train)
        return self._replace(train=_packed(sorted(joined)))

    def joined(self, other: ImageDigests) -> ImageDigests:
        """What made either of two checkpoints."""
        both = _unpacked(self.calibration) | _unpacked(other.calibration)
        return self.trained_on_too(other.train)._replace(calibration=_packed(sorted(both)))

    def held_out_from(self, other: ImageDigests) -> int:
        """How many images chose this threshold that ``other`` was trained on, and this was not."""
        return len(_unpacked(self.calibration) & _unpacked(other.train) - _unpacked(self.train))

    def with_calibration(self, images: Images) -> ImageDigests:
        """The same, but for the images that chose the threshold."""
        return self._replace(calibration=packed_digests(images))

    def among(self, images: NamedImages, whose: str, *, calibration: bool) -> dict[str, int]:
        """Phrases on those of ``images`` that are seen already, with some files, and how many they are.

        Args:
            images: held out or to be tested.
            whose: what they are called.
            calibration: whether those that chose the threshold count too.
        """
        rows = _rows(images.images)
        found = {}
        sides = {"trained on": self.train}
        if calibration:
            sides["used to choose the threshold"] = self.calibration
        for verb, digests in sides.items():
            shared = sorted(rows[key] for key in rows.keys() & _unpacked(digests))
            if shared:
                named = ", ".join(name for row in shared[:3] if (name := _file(images, row)))
                phrase = f"{len(shared)} of {whose} were {verb}{f' ({named})' if named else ''}"
                found[phrase] = len(shared)
        return found


def packed_digests(images: Images) -> Tensor:
    """The digests of ``N`` images as a tensor ``(N, 16)`` uint8, which a checkpoint can keep."""
    return _packed(pixel_digests(images))


def _packed(digests: Sequence[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, _BYTES)


def _unpacked(digests: Tensor) -> set[bytes]:
    joined = digests.numpy().tobytes()
    return {joined[start : start + _BYTES] for start in range(0, len(joined), _BYTES)}


def read_digests(kept: object) -> ImageDigests | None:
    """What a checkpoint keeps of the images that made it; None of one that keeps nothing.

    Raises:
        UserError: where that is damaged.
    """
    if kept is None:
        return None
    names = ImageDigests._fields
    right = isinstance(kept, Mapping) and all(
        isinstance(kept.get(n), Tensor) and kept[n].dtype == torch.uint8 and kept[n].shape[1:] == (_BYTES,)
        for n in names
    )
    if not right or not isinstance(kept, Mapping):
        raise UserError("the checkpoint's digests of its images are damaged; train again")
    return ImageDigests(*(kept[name] for name in names))


def digest(images: Images) -> str:
    """A digest of the images ``(N, C, H, W)`` uint8 and their order, in hexadecimal."""
    whole = hashlib.blake2b(digest_size=16)
    if (digests := kept(images, "digests")) is not None:
        whole.update(digests.numpy().tobytes())
        return whole.hexdigest()
    for pixels in _pixels(images):
        whole.update(pixels.tobytes())
    return whole.hexdigest()


def pixel_digests(images: Images) -> list[bytes]:
    """16 bytes for each image that are equal where all pixels are."""
    if (digests := kept(images, "digests")) is not None:
        return [row.tobytes() for row in digests.numpy()]
    return [digest_of(image) for pixels in _pixels(images) for image in pixels]


def digest_of(image: NDArray[np.uint8]) -> bytes:
    """16 bytes that are equal where all values are."""
    return hashlib.blake2b(image.tobytes(), digest_size=_BYTES).digest()


def _rows(images: Images) -> dict[bytes, int]:
    """Digest -> the row of an image that has it."""
    return {digest: row for row, digest in enumerate(pixel_digests(images))}


def _pixels(images: Images) -> Iterator[NDArray[np.uint8]]:
    """A thousand images at a time, as those on disk have to be read."""
    for start in range(0, len(images), 1000):
        rows = torch.arange(start, min(start + 1000, len(images)))
        yield np.ascontiguousarray(images[rows].numpy())
