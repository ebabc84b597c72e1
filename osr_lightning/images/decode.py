"""Image files and PIL images of any format and mode -> uint8 ``(C, H, W)``, in bounded memory."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from osr_lightning.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
MAX_PIXELS = 100_000_000  # of one file, as it is decoded: colour takes four bytes a pixel

_LARGE = 2**22  # pixels; larger images are averaged down first, so that their copies stay small
_STRIP = 2**20  # pixels of 16-bit or float grey that are scaled at once
# PIL warns of fewer pixels; MAX_PIXELS is the bound here
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_image(
    file: str | Path | BinaryIO, size: int | None = None, name: str | None = None
) -> NDArray[np.uint8]:
    """Read an image file of any format and mode that PIL knows; of several frames, the first.

    Args:
        file: its path, or its bytes as an open file.
        size: the height and width it will be brought to: a JPEG of several times that is decoded at a half,
            a quarter or an eighth of its own, at least twice ``size``.
        name: what to call it; its path if not given.

    Returns:
        ``(C, H, W)`` uint8, with ``C`` 1 for grey images and 3 for all others.

    Raises:
        UserError: if the file is missing, is no image, is damaged, or has more than ``MAX_PIXELS``.
    """
    # PIL's decoders raise a dozen kinds on damaged files
    try:
        with opened(file, size) as (image, _):
            return pil_to_array(image)
    except Exception as error:
        named = file if name is None else name
        raise UserError(f"Cannot read the image {named} ({reason(error)}): remove or replace it.") from error


@contextmanager
def opened(
    file: str | Path | BinaryIO, size: int | None = None
) -> Iterator[tuple[Image.Image, tuple[int, int]]]:
    """Open an image file that may be decoded: ``size`` as for `read_image`; with its own width and height.

    Raises:
        Exception: of a dozen kinds, where it may not.
    """
    if isinstance(file, (str, Path)) and os.path.exists(file) and not os.path.isfile(file):
        raise UserError("it is no regular file")  # a pipe would be waited for
    with Image.open(file) as image:
        if image.format == "EPS":  # a program, which PIL has another one run
            raise UserError("it is PostScript, whatever its name")
        width, height = whole = image.size
        if size is not None:
            image.draft(None, (2 * size, 2 * size))
        if not image.info.get("progressive"):  # else its coefficients are held whole
            width, height = image.size
        if width * height > MAX_PIXELS:
            raise UserError(f"it has {whole[0]} x {whole[1]} pixels, more than {MAX_PIXELS:,}")
        yield image, whole


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known format"
    return " ".join(str(error).split()) or type(error).__name__


def pil_to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a PIL image of any mode to uint8, upright as its EXIF orientation says.

    Transparency is composited on white. 16-bit grey (``I;16`` and ``I``) is scaled from ``[0, 65535]``.
    Float grey (``F``) is scaled from ``[0, 1]`` if no value lies above 1, else taken as ``[0, 255]``.

    Args:
        image: The image; of several frames, the current one.

    Returns:
        ``(C, H, W)`` uint8, with ``C`` 1 for grey modes and 3 for all others.
    """
    image.load()  # a PNG's orientation may follow its pixels
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_grey(image)[None]

    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        if image.mode == "La":  # PIL undoes premultiplied alpha only towards LA
            image = image.convert("LA")
        image = _smaller(_converted(image, "RGBA"))
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(_smaller(_converted(image, mode)))  # (H, W) or (H, W, 3)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _deep_grey(image: Image.Image) -> NDArray[np.uint8]:
    """16-bit and float grey -> ``(H, W)`` uint8, by strips, as numbers of 64 bits take much memory."""
    rows = max(1, _STRIP // image.width)

    def strips() -> Iterator[tuple[int, NDArray[np.float64]]]:
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            yield top, np.nan_to_num(np.asarray(strip, dtype=np.float64))

    white = 65535.0
    if image.mode == "F":
        white = 255.0 if max(values.max() for _, values in strips()) > 1 else 1.0
    pixels = np.empty((image.height, image.width), np.uint8)
    for top, values in strips():
        pixels[top : top + len(values)] = ((values / white).clip(0, 1) * 255).round()
    return pixels


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # PIL copies what is of that mode already


def _smaller(image: Image.Image) -> Image.Image:
    factor = math.isqrt(image.width * image.height // _LARGE)
    return image.reduce(factor) if factor > 1 else image
