"""Images in a folder: any format, mode and size, with or without one subfolder per class."""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from osr_lightning.atomic_write import as_text
from osr_lightning.data.cache import cached, mapped, read_rows
from osr_lightning.data.features import FeaturedImages, FeatureExtractor, featured
from osr_lightning.data.file_lists import FileList
from osr_lightning.data.image_set import ImageSet, Request, Split
from osr_lightning.data.leaks import pixel_digests
from osr_lightning.data.measure_spec import natural_file_shape
from osr_lightning.data.splits import copies, join_copies
from osr_lightning.data.stream import Images, StreamedImages
from osr_lightning.data_spec import PixelFormat
from osr_lightning.errors import UnreadableImage, UserError
from osr_lightning.images.ahead import processors
from osr_lightning.images.decode import EXTENSIONS, read_image, reason
from osr_lightning.images.find import find
from osr_lightning.images.pixels import to_input
from osr_lightning.images.tensors import to_uint8_images

_SPLIT_NAMES: dict[str, Split] = {
    **{"train": "train", "training": "train", "test": "test", "testing": "test"},
    **{"val": "validation", "valid": "validation", "validation": "validation"},
}
_NAMED = 3  # of what is left out
_UNREADABLE = 20  # files that are named
_ENDS = 2**23  # bytes of a huge file's beginning and end that tell it from others


@dataclass(frozen=True)
class Layout:
    """Where a folder keeps the images of each split; None where it has no folder for that one.

    Attributes:
        train: of the training images; the folder itself where it does not keep splits apart.
        validation: of the validation images.
        test: of the test images.
        left_out: the pictures that are elsewhere in the folder, counted and named; or empty.
    """

    train: Path
    validation: Path | None = None
    test: Path | None = None
    left_out: str = ""

    def of(self, split: Split, *, as_known: bool) -> Path:
        """The folder of one split.

        Known images without a test folder have their test held out of the training images. Of unknown ones,
        which are not trained on, the validation folder then serves the test.
        """
        if split == "test":
            return self.test or (self.train if as_known or self.validation is None else self.validation)
        if split == "validation" and self.validation is not None and (as_known or self.test is not None):
            return self.validation
        return self.train


def layout(path: Path) -> Layout:
    """Find a folder's ``train`` and ``test`` or ``val`` folders, under any of their usual names.

    Raises:
        UserError: where two folders are meant for one split.
    """
    found: dict[str, Path] = {}
    for folder in _folders(path):
        split = _SPLIT_NAMES.get(folder.name.lower())
        if split is not None and found.setdefault(split, folder) != folder:
            raise UserError(
                f"{path} has both {found[split].name} and {folder.name} for its {split} images: "
                "put the images of one into the other, or rename it"
            )
    if "train" not in found or len(found) < 2:
        return Layout(path)
    used = [*found.values()]
    beside = [one.path for one in find(path, recursive=False) if one.image]
    beside += [
        one.path for folder in _folders(path) if folder not in used for one in find(folder) if one.image
    ]
    names = " and ".join(folder.name for folder in used)
    return Layout(**found, left_out=_phrase(beside, path, f"beside {names}") if beside else "")


def folder_files(request: Request) -> FileList:
    """The image files of a folder, or of one of its splits where it keeps them apart.

    Args:
        request: Whose argument is the folder. Each subfolder with images in it, at any depth, is a class;
            images that lie directly in the folder are one class named after it. Names are composed (Unicode's
            NFC). Of its split are the images of the folder's ``train`` and ``test``, ``val`` or
            ``validation`` folder, in any case, also ``training``, ``testing`` and ``valid``; see `Layout.of`.
            A folder without these is given as a whole, whatever the split. Where classes are learned, images
            beside their folders are left out, and a folder that is two classes is refused.

    Returns:
        The files, sorted by path.

    Raises:
        UserError: The folder is missing or has no images, ``test`` or ``val`` has a class that ``train``
            lacks, or two folders are meant for one split.
    """
    path, split, as_known = request.path, request.split, request.as_known
    if not path.is_dir():
        raise UserError(f"There is no folder {path.absolute()}: name another with folder:PATH.")
    splits, flat = layout(path), path.resolve().name  # resolved, as "." has no name
    here = splits.of(split, as_known=as_known)
    files, left_out = _find_images(here, path, as_known=as_known)
    names = [_class_name(file, here, flat) for file in files]
    classes = sorted(set(names))
    if here != splits.train:
        train_files, _ = _find_images(splits.train, path, as_known=as_known)
        classes = sorted({_class_name(file, splits.train, flat) for file in train_files})
        if strangers := sorted(set(names) - set(classes)):
            raise UserError(
                f"{here} has the class {strangers[0]!r}, which {splits.train} lacks: "
                "remove it, or make it an unknown set of its own."
            )
    index = {name: label for label, name in enumerate(classes)}
    return FileList(
        files,
        [index[name] for name in names],
        tuple(classes),
        path,
        own_test=splits.test is not None or (split == "validation" and splits.validation is not None),
        own_validation=splits.validation is not None,
        left_out=(*filter(None, [splits.left_out]), *left_out),
    )


def load_files(listed: FileList, request: Request) -> ImageSet:
    """Load image files: into memory, or where they are too many into a file of the cache.

    Args:
        listed: the files, at least one.
        request: what is asked of their images.

    Returns:
        The images ``(N, channels, size, size)`` in that order, and the files relative to the list's root.

    Raises:
        UserError: Files cannot be read; all of them are named, as none may be missing.
    """
    try:
        return _loaded(listed, request)
    except UnreadableImage as first:
        if (told := _unreadable(listed.files)) is None:
            raise
        raise UserError(told) from first


def _unreadable(files: Sequence[Path]) -> str | None:
    """The sentence about all files that cannot be read, where there are several."""

    def why(file: Path) -> str:
        try:
            read_image(file)
        except UnreadableImage as error:
            return error.why
        return ""

    with ThreadPoolExecutor(processors(4)) as pool:
        found = [(file, told) for file, told in zip(files, pool.map(why, files), strict=True) if told]
    if len(found) < 2:
        return None
    named = ", ".join(f"{as_text(file)} ({told})" for file, told in found[:_UNREADABLE])
    more = ", …" * (len(found) > _UNREADABLE)
    return f"Cannot read {len(found):,} of {len(files):,} images: {named}{more}; remove or replace them."


def _loaded(listed: FileList, request: Request) -> ImageSet:
    request.check(listed.classes)
    files, wanted, extractor = listed.files, request.pixel_format, request.extractor
    size, channels = request.size, request.channels
    if wanted is not None:
        size, channels = wanted.image_size, wanted.channels
    if size is None or channels is None:
        natural = natural_file_shape(files)
        size, channels = size or natural[1], channels or natural[0]
    read = partial(read_images, size=size, channels=channels, pixel_format=wanted)
    keys = [_digest(file) for file in files]
    images: Images
    shape = (len(files), channels, size, size)
    settings: tuple[int | str, ...] = (size, channels)
    if wanted is not None:
        settings += (wanted.resize or 0, wanted.interpolation)
    if extractor is not None:
        images = featured(keys, files, read, extractor, shape[1:])
    elif math.prod(shape) > request.memory_limit:
        images = _streamed(files, read, keys, shape, settings)
    else:
        images = cached(map(_read_bytes, files), settings, shape, lambda: read(files))
    if not isinstance(images, StreamedImages) or extractor is not None:
        keys = join_copies(keys, pixel_digests(images))
    inside = (file.relative_to(listed.root) if file.is_relative_to(listed.root) else file for file in files)
    shown = tuple(as_text(file.as_posix()) for file in inside)
    return ImageSet(
        images=images,
        labels=torch.tensor(listed.labels),
        classes=listed.classes,
        files=shown,
        keys=tuple(keys),
        note=copies(keys, shown, listed.labels),
        left_out=listed.left_out,
        own_validation=request.as_known and listed.own_validation,
    )


def _streamed(
    files: Sequence[Path],
    read: Callable[[Sequence[Path]], Tensor],
    keys: Sequence[bytes],
    shape: tuple[int, int, int, int],
    settings: tuple[int | str, ...],
) -> StreamedImages:
    """Resized once, into a file of the cache where there is room; else decoded when they are asked for."""
    file = mapped(keys, ("mapped", *shape[:1], *settings), shape, lambda start, end: read(files[start:end]))
    if file is None:
        return StreamedImages(files, read, shape[1:])
    return StreamedImages(range(len(files)), partial(read_rows, file), shape[1:], quick=True)


def _digest(file: Path) -> bytes:
    """16 bytes that files of other content hardly share; of a huge file, of its length and its two ends."""
    with _reading(file), file.open("rb") as stream:
        begin = stream.read(_ENDS)
        length = stream.seek(0, os.SEEK_END)
        stream.seek(max(len(begin), length - _ENDS))
        whole = b"%d:" % length + begin + stream.read()
    return hashlib.blake2b(whole, digest_size=16).digest()


def featured_files(files: Sequence[Path], wanted: PixelFormat, extractor: FeatureExtractor) -> FeaturedImages:
    """Image files, wherever they are, with the features of a frozen backbone.

    Raises:
        UserError: where one cannot be read.
    """
    size, channels = wanted.image_size, wanted.channels
    read = partial(read_images, size=size, channels=channels, pixel_format=wanted)
    return featured([_digest(file) for file in files], files, read, extractor, (channels, size, size))


def read_images(
    files: Sequence[Path], *, size: int, channels: int, pixel_format: PixelFormat | None = None
) -> Tensor:
    """Read image files on a small pool of threads (PIL lets go of Python's lock while it decodes).

    Args:
        files: ``N`` paths, at least one.
        size: Height and width of the result.
        channels: Channels of the result, 1 or 3.
        pixel_format: What a backbone wants of images, in place of size and channels.

    Returns:
        ``(N, channels, size, size)`` uint8, in the order of ``files``.

    Raises:
        UserError: A file is no image that PIL can read.
    """

    def alike(pixels: Tensor) -> object:
        # a photograph of many megapixels is shrunk at once, on its own, so that memory stays small
        return pixels.shape if pixels.numel() <= 2**18 else object()

    def read(some: Sequence[Path]) -> Tensor:
        if pixel_format is not None:
            wanted = pixel_format
            pictures = (read_image(file, wanted.resize or size) for file in some)
            return torch.from_numpy(np.stack([to_input(picture, wanted) for picture in pictures]))
        groups = groupby((torch.from_numpy(read_image(file, size)) for file in some), key=alike)
        return torch.cat(
            [to_uint8_images(torch.stack(list(group)), size=size, channels=channels) for _, group in groups]
        )

    # 32 small files a task: one by one, handing them over and converting them would cost more than decoding
    tasks = [files[start : start + 32] for start in range(0, len(files), 32)]
    if get_worker_info() is not None:  # there is a process for each processor already
        return torch.cat([read(task) for task in tasks])
    with ThreadPoolExecutor(processors(4)) as pool:
        return torch.cat(list(pool.map(read, tasks)))


def _read_bytes(file: Path) -> bytes:
    with _reading(file):
        return file.read_bytes()


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = reason(error)
        raise UnreadableImage(f"Cannot read the image {file} ({why}): remove or replace it.", why) from error


def _find_images(folder: Path, path: Path, *, as_known: bool) -> tuple[list[Path], list[str]]:
    """All image files under a folder, sorted, without hidden files and folders; and what is left out.

    Args:
        folder: where to look.
        path: the folder that the user named.
        as_known: whether the folders in it are classes to be learned.
    """
    # classes are often links to folders elsewhere, which are followed
    again: list[tuple[Path, Path]] = []
    found = [f.path for f in find(folder, again=again)]
    pictures = [file for file in found if file.suffix.lower() in EXTENSIONS]
    # a pipe would be waited for
    files = sorted(file for file in pictures if os.path.isfile(file) or not os.path.exists(file))
    others = sorted({*found} - {*files})
    for other in others:
        if os.path.isdir(other) or not os.path.lexists(other):  # its images would be missing without a word
            raise UserError(f"Cannot read the folder {other}: change its rights or its place.")
    left_out = [_phrase(others, path, "of no format that is read")] if others else []
    if as_known:
        _refuse_double(again, folder)
        beside = [file for file in files if file.parent == folder]
        if 0 < len(beside) < len(files):
            files = [file for file in files if file.parent != folder]
            left_out.append(_phrase(beside, path, "beside the folders of the classes"))
        filled = {folder / _top(file, folder) for file in (*files, *(link for link, _ in again))}
        if empty := [one for one in _folders(folder) if one not in filled]:
            left_out.append(_phrase(empty, path, "without pictures", "folder"))
    if not files:
        raise UserError(
            f"There are no images in {folder.absolute()}: put {', '.join(EXTENSIONS)} files there."
        )
    return files, left_out


def _refuse_double(again: Sequence[tuple[Path, Path]], folder: Path) -> None:
    """Stop where a folder belongs to two classes by way of a link."""
    for link, first in again:
        upwards = Path(os.path.realpath(link.parent)).is_relative_to(os.path.realpath(link))
        if not upwards and _top(link, folder) != _top(first, folder):
            raise UserError(
                f"{first} and {link} are the same folder, so its images would be of two classes: remove one"
            )


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, but for hidden ones; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            found = [Path(e.path) for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError:  # reading its images will say what is wrong
        return []
    return sorted(found)


def _phrase(left_out: Sequence[Path], path: Path, why: str, what: str = "file") -> str:
    """What is left out, counted and named: ``3 files beside train (a.png, …)``."""
    shown = ", ".join(as_text(one.relative_to(path).as_posix()) for one in left_out[:_NAMED])
    count = f"{len(left_out):,} {what}{'s' * (len(left_out) > 1)}"
    return f"{count} {why} ({shown}{', …' * (len(left_out) > _NAMED)})"


def _top(file: Path, folder: Path) -> str:
    """The first part of the way from ``folder`` to ``file``."""
    return next(iter(file.relative_to(folder).parts), "")


def _class_name(file: Path, folder: Path, flat: str) -> str:
    """The first subfolder on the way from ``folder`` to ``file``, or ``flat`` if there is none; composed.

    A zip from a Mac has decomposed names, and no one types these.
    """
    return unicodedata.normalize("NFC", as_text(flat if file.parent == folder else _top(file, folder)))
