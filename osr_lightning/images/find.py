"""Finding image files: paths, folders and globs -> files in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from osr_lightning.errors import UserError
from osr_lightning.images.decode import EXTENSIONS
from osr_lightning.images.pixels import ImageLike, is_tensor

# pictures of kinds that PIL may or may not read here: an answer is owed for them, not for other files
_OTHERS = """
.jpe .jfif .apng .avif .heic .heif .jp2 .j2k .jxl .svg .psd .ico .tga .pcx .dds .pbm .pnm .pfm .exr .hdr .raw
.dng .cr2 .nef .arw .dcm .xbm .xpm .icns .dib .eps .wmf .emf
"""
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


def find(named: str | os.PathLike[str], *, recursive: bool = True) -> Iterator[Found]:
    """The files that a path, a folder or a glob stands for, sorted folder by folder.

    A file that was named is always to be read as an image. A folder gives its files, those of known
    picture endings as images. Hidden files and folders are passed over in silence, and links followed once.

    Raises:
        UserError: if a glob matches nothing, or folders lie more than 64 deep.
    """
    path = Path(os.path.expanduser(named))  # pathlib's own raises where there is no such user
    if os.path.isdir(path):
        yield from _walk(path, recursive)
    elif os.path.lexists(path) or not glob.has_magic(str(named)):
        yield Found(path, True)  # where it is missing, reading it will say so
    else:
        names = sorted(glob.glob(str(path), recursive=True))
        if not names:
            raise UserError(f"no file matches {named}: {_nearest(path)}")
        for name in names:
            if os.path.isdir(name):
                if "**" not in str(named):
                    yield from _walk(Path(name), recursive)
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


def _walk(
    folder: Path, recursive: bool, above: int = 0, seen: set[tuple[int, int]] | None = None
) -> Iterator[Found]:
    seen = set() if seen is None else seen
    if above > _DEEPEST:
        raise UserError(f"{folder} is more than {_DEEPEST} folders down: name a folder nearer to the images")
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return  # a link to a folder above
        seen.add((status.st_dev, status.st_ino))
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
            yield from _walk(below, recursive, above + 1, seen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def expand(
    images: ImageLike | Sequence[ImageLike], recursive: bool = True, above: int = 0
) -> Iterator[ImageLike]:
    """One image, or several of any kind -> each image by itself, folders and globs opened.

    Args:
        images: paths, arrays, pictures, or lists of these, in one another.
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
    elif isinstance(images, np.ndarray) or is_tensor(images):
        yield from images if images.ndim == 4 else [images]
    elif isinstance(images, Iterable) and not isinstance(images, (Image.Image, bytes)):
        for image in images:
            yield from expand(image, recursive, above + 1)
    else:
        yield images
