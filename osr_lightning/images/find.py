"""Finding image files: paths, folders and globs -> files in a fixed order."""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from osr_lightning.errors import UserError
from osr_lightning.images.decode import EXTENSIONS
from osr_lightning.images.pixels import ImageLike, is_tensor

# pictures of formats that are not read here: an answer is owed for them, not for other files
_OTHERS = """
.heic .heif .jxl .svg .psd .ico .tga .pcx .dds .exr .hdr .raw .dng .cr2 .nef .arw .dcm .xbm .xpm .icns .eps
.wmf .emf .qoi .fits
"""
_NO_LISTS = (Image.Image, bytes, io.IOBase, Mapping)  # though they can be gone through
_DEEPEST = 64  # folders in one another; more are no one's order, and a recursion has its limit
_PICTURES = {*EXTENSIONS, *_OTHERS.split()}


class Found(NamedTuple):
    """A file that was found.

    Attributes:
        path: as a reader would write it: what was named, and what follows below that.
        image: whether it is to be read as an image; other files in a folder are passed over.
    """

    path: Path
    image: bool


def find(
    named: str | os.PathLike[str], *, recursive: bool = True, again: list[tuple[Path, Path]] | None = None
) -> Iterator[Found]:
    """The files that a path, a folder or a glob stands for, sorted folder by folder.

    A file that was named is always to be read as an image. A folder gives its files, those of known
    picture endings as images. Hidden files and folders are passed over in silence, and links followed once.

    Args:
        named: the path, folder or glob.
        recursive: whether a folder's own folders count.
        again: takes the links that are not followed, each with the path by which its folder was met first.

    Raises:
        UserError: if the path is empty, a glob matches nothing, or folders lie more than 64 deep.
    """
    check_named(named)
    again = [] if again is None else again
    path = Path(os.path.expanduser(named))  # pathlib's own raises where there is no such user
    if os.path.isdir(path):
        yield from _walk(path, recursive, again)
    elif os.path.lexists(path) or not glob.has_magic(str(named)):
        yield Found(path, True)  # where it is missing, reading it will say so
    else:
        names = sorted(glob.glob(str(path), recursive=True))
        if not names:
            raise UserError(f"no file matches {named}: {_nearest(path)}")
        for name in names:
            if os.path.isdir(name):
                if "**" not in str(named):
                    yield from _walk(Path(name), recursive, again)
            else:
                # a pipe would be waited for; a broken link has an answer coming
                yield Found(Path(name), os.path.isfile(name) or not os.path.exists(name))


def _nearest(pattern: Path) -> str:
    """What there is of the folders that a glob names, up to its first star."""
    folder = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        if not os.path.isdir(folder / part):
            return f"there is no folder {part} in {folder.absolute()}"
        folder /= part
    return f"the folder {folder.absolute()} has none"


def check_named(named: str | os.PathLike[str]) -> None:
    """Refuse an empty path, which is the working folder for pathlib and no one's for a person.

    Raises:
        UserError: if it is empty.
    """
    if not os.fspath(named):
        raise UserError("an empty path names no image; name a file, a folder (. is this one) or a glob")


def _walk(
    folder: Path,
    recursive: bool,
    again: list[tuple[Path, Path]],
    above: int = 0,
    seen: dict[tuple[int, int], Path] | None = None,
) -> Iterator[Found]:
    seen = {} if seen is None else seen
    if above > _DEEPEST:
        raise UserError(f"{folder} is more than {_DEEPEST} folders down: name a folder nearer to the images")
    try:
        status = os.stat(folder)
        first = seen.setdefault((status.st_dev, status.st_ino), folder)
        if first is not folder:
            again.append((folder, first))
            return
        with os.scandir(folder) as entries:
            visible = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        yield Found(folder, True)  # reading it as an image will say what is wrong
        return
    folders = []
    for entry in visible:
        if _is_folder(entry):
            folders.append(Path(entry.path))
        else:
            # a pipe or a device would be waited for
            ending = os.path.splitext(entry.name)[1].lower()
            special = os.path.exists(entry.path) and not os.path.isfile(entry.path)
            yield Found(Path(entry.path), ending in _PICTURES and not special)
    if recursive:
        for below in folders:
            yield from _walk(below, recursive, again, above + 1, seen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def expand(
    images: ImageLike | Sequence[ImageLike], recursive: bool = True, above: int = 0
) -> Iterator[ImageLike]:
    """One image, or several of any kind -> each image by itself, folders and globs opened.

    How many images an array or a tensor holds is told by its shape alone. An array has its channels last:
    ``(H, W)`` and ``(H, W, C)`` with ``C`` from 1 to 4 are one image, any other ``(N, H, W)`` is ``N`` grey
    ones. A tensor has them first: ``(H, W)`` and ``(C, H, W)`` are one image. With four axes the first counts
    the images. An array of strings is a list of paths.

    Args:
        images: paths, files, arrays, pictures, or lists of these, in one another.
        recursive: whether folders below a folder are opened.
        above: how many lists this is in.

    Raises:
        UserError: see `find`; or where a folder has no images, or a list lies more than 64 deep, as one that
            contains itself does.
    """
    if above > _DEEPEST:
        raise UserError(f"the images are lists of lists, more than {_DEEPEST} deep: does one contain itself?")
    if isinstance(images, (str, Path)):
        found = [file.path for file in find(images, recursive=recursive) if file.image]
        if not found:
            raise UserError(f"there are no images in {images}")
        yield from found
    elif isinstance(images, np.ndarray) and images.dtype.kind in "UO":
        yield from expand(images.ravel().tolist(), recursive, above + 1)
    elif isinstance(images, np.ndarray):
        several = images.ndim == 4 or (images.ndim == 3 and images.shape[2] not in (1, 2, 3, 4))
        yield from images if several else [images]
    elif is_tensor(images):
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable) and not isinstance(images, _NO_LISTS):
        for image in images:
            yield from expand(image, recursive, above + 1)
    else:
        yield images
