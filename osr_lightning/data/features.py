"""Features of a frozen backbone: computed once per image, and kept between runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from osr_lightning.atomic_write import replacing
from osr_lightning.data.cache import cache_folder
from osr_lightning.data.leaks import digest_of
from osr_lightning.data.stream import Images, StreamedImages, kept
from osr_lightning.errors import Failure
from osr_lightning.images.ahead import ahead

Pixels: TypeAlias = NDArray[np.uint8]
THUMBNAIL = 32  # pixels a side
_SHARD = 1024  # images whose features are written together
_KEY = 16  # bytes of an image's key, and of the digest of its prepared pixels
_AHEAD = 4  # batches that are decoded before they are needed
_UNWRITTEN: dict[Path, list[tuple[Pixels, NDArray[np.float32], Pixels]]] = {}  # of folders that refuse them


class FeatureExtractor(Protocol):
    """A frozen backbone.

    Attributes:
        key: tells this backbone, its weights and its preprocessing from others.
        width: ``D``.
        batch_size: images that go through it together.
    """

    key: str
    width: int
    batch_size: int

    def begin(self, images: int) -> None:
        """Get ready for so many images."""

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """Prepared images ``(n, C, H, W)`` -> features ``(n, D)``."""


class FeaturedImages(StreamedImages):
    """``N`` images whose features are at hand; their pixels are read when somebody wants to see them.

    Args:
        files: see `StreamedImages`.
        read: see `StreamedImages`.
        shape: ``(C, H, W)`` of the prepared pixels.
        features: ``(N, D)`` float32.
        digests: ``(N, 16)`` uint8, of each image's prepared pixels.
        thumbnails: ``(N, 3, 32, 32)`` uint8.
    """

    def __init__(
        self,
        files: Sequence[Any],
        read: Callable[[Sequence[Any]], Tensor],
        shape: Sequence[int],
        features: Tensor,
        digests: Tensor,
        thumbnails: Tensor,
    ) -> None:
        super().__init__(files, read, shape, quick=True)
        self.features, self.digests, self.thumbnails = features, digests, thumbnails

    def take(self, rows: Tensor) -> FeaturedImages:
        """The images at ``rows`` ``(n,)``."""
        files = [self.files[row] for row in rows.tolist()]
        parts = (part[rows] for part in (self.features, self.digests, self.thumbnails))
        return FeaturedImages(files, self.read, self.shape[1:], *parts)


def featured(
    keys: Sequence[bytes],
    items: Sequence[Any],
    read: Callable[[Sequence[Any]], Tensor],
    extractor: FeatureExtractor,
    shape: Sequence[int],
) -> FeaturedImages:
    """Images and their features: those that are kept, and for the others those of the backbone.

    Args:
        keys: ``N`` digests of 16 bytes, of the images as they come; images of one key have one content.
        items: ``N`` things that ``read`` finds an image by.
        read: turns some of them into prepared pixels ``(n, C, H, W)`` uint8.
        extractor: the backbone.
        shape: ``(C, H, W)`` of these pixels.

    Raises:
        UserError: where an image cannot be read.
    """
    store = _Store(cache_folder() / "features" / extractor.key, extractor.width)
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in store}
    if missing:
        extractor.begin(len(missing))
        rows: list[_Row] = []
        try:
            for row in _looked_at(missing, read, extractor):
                rows.append(row)
                if len(rows) == _SHARD:
                    store.add(rows)
                    rows = []
        finally:  # whatever ends it: the next run goes on from there
            if rows:
                store.add(rows)
            done = sum(key in store for key in missing)
            if done < len(missing) and store.on_disk:
                print(
                    f"features: those of {done:,} of {len(missing):,} images are kept; the same command or "
                    "call goes on from there",
                    file=sys.stderr,
                )
    features, digests, thumbnails = store.rows(keys)
    return FeaturedImages(items, read, shape, features, digests, thumbnails)


def thumbnails_of(images: Images, rows: Tensor) -> Tensor:
    """Small pictures ``(n, C, H, W)`` uint8 of the images at ``rows``; those of large images are shrunk.

    Images whose features are at hand are not read for it.
    """
    if (thumbnails := kept(images, "thumbnails")) is not None:
        return thumbnails[rows]
    pixels = images[rows]
    return pixels if pixels.shape[-1] <= 2 * THUMBNAIL else _thumbnails(pixels)


_Row: TypeAlias = tuple[bytes, Pixels, NDArray[np.float32], Pixels]
"""An image's key, the digest of its pixels, its features and its thumbnail."""


def _looked_at(
    missing: dict[bytes, Any], read: Callable[[Sequence[Any]], Tensor], extractor: FeatureExtractor
) -> Iterator[_Row]:
    """Look at each image once; the next ones are decoded meanwhile."""
    from rich.progress import track

    def prepare(some: Sequence[tuple[bytes, Any]]) -> Pixels:
        return read([item for _, item in some]).numpy()

    found, size = list(missing.items()), extractor.batch_size
    parts = [found[start : start + size] for start in range(0, len(found), size)]
    with ThreadPoolExecutor(2) as pool:
        silent = not sys.stderr.isatty()
        read_ahead = ahead(pool, prepare, parts, _AHEAD)
        for some, pixels in track(read_ahead, total=len(parts), description="features", disable=silent):
            thumbnails = _thumbnails(torch.from_numpy(pixels)).numpy()
            features = extractor(pixels)
            for (key, _), image, feature, small in zip(some, pixels, features, thumbnails, strict=True):
                yield key, np.frombuffer(digest_of(image), np.uint8), feature, small


def _thumbnails(pixels: Tensor) -> Tensor:
    small = F.interpolate(pixels, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
    return small.expand(-1, 3, -1, -1)


class _Store:
    """What is kept of one backbone: files of a thousand images, which are read a row at a time.

    Of each there are three, ``NAME.features.npy`` ``(n, D)`` float32, ``NAME.thumbnails.npy`` and, written
    last, ``NAME.keys.npy`` ``(n, 32)``: an image's key, and the digest of its prepared pixels.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.folder, self.width = folder, width
        self._place: dict[bytes, tuple[int, int]] = {}
        self._parts: list[tuple[NDArray[np.float32], Pixels, Pixels]] = []
        for file in sorted(folder.glob("*.keys.npy")):
            # an entry that is damaged, or of another process that is just removing it, is looked at again
            with suppress(Exception):
                self._enter(*self._open(file))
        for part in _UNWRITTEN.get(folder, []):
            self._enter(*part)

    def _open(self, file: Path) -> tuple[Pixels, NDArray[np.float32], Pixels]:
        name = file.name.removesuffix(".keys.npy")
        keys = np.load(file, allow_pickle=False)
        features, thumbnails = (
            np.load(self.folder / f"{name}.{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in ("features", "thumbnails")
        )
        shapes = [(len(keys), 2 * _KEY), (len(keys), self.width), (len(keys), 3, THUMBNAIL, THUMBNAIL)]
        kinds = [np.uint8, np.float32, np.uint8]
        if [part.shape for part in (keys, features, thumbnails)] != shapes or [
            part.dtype for part in (keys, features, thumbnails)
        ] != kinds:
            raise ValueError(f"{file} is of another layout")
        return keys, features, thumbnails

    def _enter(self, keys: Pixels, features: NDArray[np.float32], thumbnails: Pixels) -> None:
        part = len(self._parts)
        self._parts.append((features, keys[:, _KEY:], thumbnails))
        for row, key in enumerate(keys[:, :_KEY]):
            self._place.setdefault(key.tobytes(), (part, row))

    @property
    def on_disk(self) -> bool:
        """Whether all that is kept outlives this process."""
        return self.folder not in _UNWRITTEN

    def __contains__(self, key: bytes) -> bool:
        """Whether an image of this key was looked at."""
        return key in self._place

    def add(self, rows: Sequence[_Row]) -> None:
        """Keep what was found of some images: on disk, or in memory where the cache cannot be written."""
        keys = np.stack([np.frombuffer(key + digest.tobytes(), np.uint8) for key, digest, _, _ in rows])
        features = np.stack([feature for _, _, feature, _ in rows]).astype(np.float32)
        thumbnails = np.stack([small for _, _, _, small in rows])
        name = digest_of(keys).hex()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for part, values in (("features", features), ("thumbnails", thumbnails), ("keys", keys)):
                with replacing(self.folder / f"{name}.{part}.npy") as partial:
                    np.save(partial, values, allow_pickle=False)
        except (Failure, OSError):
            _UNWRITTEN.setdefault(self.folder, []).append((keys, features, thumbnails))
        self._enter(keys, features, thumbnails)

    def rows(self, keys: Sequence[bytes]) -> tuple[Tensor, Tensor, Tensor]:
        """Features ``(N, D)``, digests ``(N, 16)`` and thumbnails ``(N, 3, 32, 32)`` of the images."""
        places = np.array([self._place[key] for key in keys], dtype=np.int64).reshape(-1, 2)
        features = np.empty((len(keys), self.width), np.float32)
        digests = np.empty((len(keys), _KEY), np.uint8)
        thumbnails = np.empty((len(keys), 3, THUMBNAIL, THUMBNAIL), np.uint8)
        for part, there in enumerate(self._parts):
            mine = np.flatnonzero(places[:, 0] == part)
            rows = places[mine, 1]
            features[mine], digests[mine], thumbnails[mine] = there[0][rows], there[1][rows], there[2][rows]
        return torch.from_numpy(features), torch.from_numpy(digests), torch.from_numpy(thumbnails)
