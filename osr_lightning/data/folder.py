"""Images in a folder: any format, mode and size, with or without one subfolder per class."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from osr_lightning.atomic_write import as_text
from osr_lightning.data.cache import cached, mapped, read_rows
from osr_lightning.data.image_set import ImageSet, Split
from osr_lightning.data.leaks import pixel_digests
from osr_lightning.data.measure_spec import natural_file_shape
from osr_lightning.data.splits import copies, join_copies
from osr_lightning.data.stream import Images, StreamedImages
from osr_lightning.errors import UserError
from osr_lightning.images.decode import EXTENSIONS, read_image
from osr_lightning.images.find import find
from osr_lightning.images.tensors import to_uint8_images

_ENDS = 2**23  # bytes of a huge file's beginning and end that tell it from others


def has_splits(path: Path) -> bool:
    """Whether the folder keeps its own ``train`` and ``test`` images apart."""
    return (path / "train").is_dir() and (path / "test").is_dir()


def load_folder(
    path: Path,
    split: Split,
    *,
    size: int | None = None,
    channels: int | None = None,
    memory_limit: float = math.inf,
) -> ImageSet:
    """Load the images of a folder, or of its ``train`` or ``test`` subfolder where it has both.

    Args:
        path: The folder. Each subfolder with images in it, at any depth, is a class; images that lie
            directly in the folder are one class named after it.
        split: Which subfolder: ``train`` for training and validation, ``test`` for test. A folder
            without both of them is given as a whole, whatever the split.
        size: Height and width of the result; what suits the images if not given.
        channels: Channels of the result, 1 or 3; what suits the images if not given.
        memory_limit: Images that would take more bytes stay on disk and are read when asked for.

    Returns:
        The images ``(N, channels, size, size)``, sorted by path, and the files relative to ``path``.

    Raises:
        UserError: The folder is missing or has no images, an image cannot be read, or ``test`` has a
            class that ``train`` lacks.
    """
    if not path.is_dir():
        raise UserError(f"There is no folder {path.absolute()}: name another with folder:PATH.")
    splits, flat = has_splits(path), path.resolve().name  # resolved, as "." has no name
    here = path if not splits else path / ("test" if split == "test" else "train")
    files = _find_images(here)
    names = [_class_name(file, here, flat) for file in files]
    classes = sorted(set(names))
    if splits and split == "test":
        train = path / "train"
        classes = sorted({_class_name(file, train, flat) for file in _find_images(train)})
        if strangers := sorted(set(names) - set(classes)):
            raise UserError(
                f"{here} has the class {strangers[0]!r}, which {train} lacks: "
                "remove it, or make it an unknown set of its own."
            )
    index = {name: label for label, name in enumerate(classes)}
    if size is None or channels is None:
        natural = natural_file_shape(files)
        size, channels = size or natural[1], channels or natural[0]
    read = partial(read_images, size=size, channels=channels)
    keys = [_digest(file) for file in files]
    images: Images
    shape = (len(files), channels, size, size)
    if math.prod(shape) > memory_limit:
        images = _streamed(files, read, keys, shape)
    else:
        images = cached(map(_read_bytes, files), (size, channels), shape, lambda: read(files))
    if isinstance(images, Tensor):
        keys = join_copies(keys, pixel_digests(images))
    shown = tuple(as_text(file.relative_to(path).as_posix()) for file in files)
    return ImageSet(
        images=images,
        labels=torch.tensor([index[name] for name in names]),
        classes=tuple(classes),
        files=shown,
        keys=tuple(keys),
        note=copies(keys, shown),
    )


def _streamed(
    files: Sequence[Path],
    read: Callable[[Sequence[Path]], Tensor],
    keys: Sequence[bytes],
    shape: tuple[int, int, int, int],
) -> StreamedImages:
    """Resized once, into a file of the cache where there is room; else decoded when they are asked for."""
    file = mapped(keys, ("mapped", *shape), shape, lambda start, end: read(files[start:end]))
    if file is None:
        return StreamedImages(files, read, shape[1:])
    return StreamedImages(range(len(files)), partial(read_rows, file), shape[1:], quick=True)


def _digest(file: Path) -> bytes:
    """16 bytes that files of other content hardly share; of a huge file, of its length and its two ends."""
    try:
        with file.open("rb") as stream:
            begin = stream.read(_ENDS)
            length = stream.seek(0, os.SEEK_END)
            stream.seek(max(len(begin), length - _ENDS))
            whole = b"%d:" % length + begin + stream.read()
    except OSError as error:
        raise UserError(f"Cannot read the image {file} ({error}): remove or replace it.") from error
    return hashlib.blake2b(whole, digest_size=16).digest()


def read_images(files: Sequence[Path], *, size: int, channels: int) -> Tensor:
    """Read image files on a small pool of threads (PIL lets go of Python's lock while it decodes).

    Args:
        files: ``N`` paths, at least one.
        size: Height and width of the result.
        channels: Channels of the result, 1 or 3.

    Returns:
        ``(N, channels, size, size)`` uint8, in the order of ``files``.

    Raises:
        UserError: A file is no image that PIL can read.
    """

    def alike(pixels: Tensor) -> object:
        # a photograph of many megapixels is shrunk at once, on its own, so that memory stays small
        return pixels.shape if pixels.numel() <= 2**18 else object()

    def read(some: Sequence[Path]) -> Tensor:
        groups = groupby((torch.from_numpy(read_image(file, size)) for file in some), key=alike)
        return torch.cat(
            [to_uint8_images(torch.stack(list(group)), size=size, channels=channels) for _, group in groups]
        )

    # 32 small files a task: one by one, handing them over and converting them would cost more than decoding
    tasks = [files[start : start + 32] for start in range(0, len(files), 32)]
    if get_worker_info() is not None:  # there is a process for each processor already
        return torch.cat([read(task) for task in tasks])
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return torch.cat(list(pool.map(read, tasks)))


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the image {file} ({error}): remove or replace it.") from error


def _find_images(folder: Path) -> list[Path]:
    """All image files under a folder, sorted, without hidden files and folders."""
    # classes are often links to folders elsewhere, which are followed
    found = [f.path for f in find(folder) if f.image]
    files = [path for path in found if path.suffix.lower() in EXTENSIONS]
    for path in set(found).difference(files):
        if os.path.isdir(path) or not os.path.lexists(path):  # its images would be missing without a word
            raise UserError(f"Cannot read the folder {path}: change its rights or its place.")
    if not files:
        raise UserError(
            f"There are no images in {folder.absolute()}: put {', '.join(EXTENSIONS)} files there."
        )
    return sorted(files)


def _class_name(file: Path, folder: Path, flat: str) -> str:
    """The first subfolder on the way from ``folder`` to ``file``, or ``flat`` if there is none."""
    parts = file.relative_to(folder).parts
    return as_text(parts[0] if len(parts) > 1 else flat)
