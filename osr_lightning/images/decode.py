"""Image files and PIL images of any mode -> uint8 ``(C, H, W)``, in bounded memory and time."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

from osr_lightning.errors import UnreadableImage, UserError

# what is read, for training and for predicting: PIL's name of each format, and the endings of its files; PIL
# knows thirty more, whose decoders take any time (a FITS of 400 KB: 51 s) or run other programs
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "AVIF": (".avif",),
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)
# of one image: colour takes four bytes a pixel in PIL, and up to twelve while it is decoded (progressive CMYK
# JPEG). PIL warns of more, which is refused here, so that nobody's warnings need to be filtered
MAX_PIXELS = 89_478_485
# of formats that are decoded as a whole beside the picture: JPEG 2000 takes 24 bytes a pixel, AVIF up to that
MAX_WHOLE = 2**25
_WHOLE = ("JPEG2000", "WEBP", "AVIF")
MAX_SIDE = 65_535  # pixels, what a JPEG may have: images of one row by millions take long to resize
MAX_SCANS = 50  # of a JPEG: each goes over all pixels, however few bytes it has; PIL itself writes 10
MAX_SLOW = 2**22  # values of a PPM whose white is not 255, or in digits: PIL takes half a second a million

_LARGE = 2**22  # pixels; larger images are averaged down first, so that their copies stay small
_FINER = 16  # times the size that is asked for: what is finer still is averaged down first
_STRIP = 2**20  # pixels of 16-bit or float grey that are scaled at once
# an older PIL raises KeyError for a format that it does not know
_FORMATS = tuple(name for name in FORMATS if name != "AVIF" or find_spec("PIL.AvifImagePlugin"))
_OPTIONAL = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}  # as PIL's features call them
# a marker of JPEG: neither a stuffed byte, nor a restart, nor what fills up to one
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_SCAN, _END, _START = b"\xda", b"\xd9", b"\xd8"


def read_image(
    file: str | Path | BinaryIO, size: int | None = None, name: str | None = None
) -> NDArray[np.uint8]:
    """Read an image file of one of the ``FORMATS``, of any mode; of several frames, the first.

    Args:
        file: its path, or its bytes as an open file.
        size: the height and width it will be brought to; see `pil_to_array`.
        name: what to call it; its path if not given.

    Returns:
        ``(C, H, W)`` uint8, with ``C`` 1 for grey images and 3 for all others.

    Raises:
        UnreadableImage: if the file is missing, is no image, is damaged, has more than ``MAX_PIXELS``
            (``MAX_WHOLE`` in formats that are decoded as a whole) or a side of more than ``MAX_SIDE``, is a
            JPEG of more than ``MAX_SCANS``, or has values of no known range; see `pil_to_array`.
    """
    named = file if name is None else name
    # PIL's decoders raise a dozen kinds on damaged files
    try:
        with opened(file) as image:
            return pil_to_array(image, size)
    except Exception as error:
        why, way_out = reason(error), "remove or replace it"
        if isinstance(error, UnidentifiedImageError) and (missing := _not_installed(str(named))):
            why, way_out = f"this Pillow reads no {missing} files", "convert it, or pip install -U pillow"
        raise UnreadableImage(f"Cannot read the image {named} ({why}): {way_out}.", why) from error


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file that may be decoded.

    Raises:
        Exception: of a dozen kinds, where it may not.
    """
    if isinstance(file, (str, Path)) and os.path.exists(file) and not os.path.isfile(file):
        raise UserError("it is no regular file")  # a pipe would be waited for
    with Image.open(file, formats=_FORMATS) as image:
        check_size(*image.size)
        if image.format in _WHOLE and image.width * image.height > MAX_WHOLE:
            size = f"{image.width} x {image.height} pixels"
            raise UserError(f"it is {image.format} of {size}, more than {MAX_WHOLE:,}")
        if image.format in ("JPEG", "MPO") and image.fp is not None:
            _check_scans(image.fp)
        slow = any(part[0] in ("ppm", "ppm_plain") for part in image.tile)
        if slow and image.width * image.height * len(image.getbands()) > MAX_SLOW:
            raise UserError(f"it is a PPM that is no bytes of 0 to 255, of more than {MAX_SLOW:,} values")
        yield image


def check_size(width: int, height: int) -> None:
    """Refuse an image that would take too much memory or time.

    Raises:
        UserError: if it has more than ``MAX_PIXELS``, or a side of more than ``MAX_SIDE``.
    """
    if width * height > MAX_PIXELS:
        raise UserError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_SIDE:
        raise UserError(f"it has {width} x {height} pixels, more than {MAX_SIDE:,} on one side")


def _check_scans(file: IO[bytes]) -> None:
    """Refuse a JPEG of more than ``MAX_SCANS`` before it is decoded, and leave the file where it was.

    Raises:
        UserError: if it has more.
    """
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    if content.count(b"\xff" + _SCAN) <= MAX_SCANS:
        return
    # thumbnails, and films after the end, have such bytes too: markers are followed, as libjpeg does
    scans, place = 0, 0
    while found := _MARKER.search(content, place):
        marker, place = found[1], found.end()
        if marker == _END:
            return
        if marker == _START:
            continue
        scans += marker == _SCAN
        if scans > MAX_SCANS:
            raise UserError(f"it is a JPEG of more than {MAX_SCANS} scans")
        place += max(2, int.from_bytes(content[place : place + 2], "big"))


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"it is no image of a known format: {', '.join(FORMATS)}"
    return " ".join(str(error).split()) or type(error).__name__


def _not_installed(name: str) -> str | None:
    """The format that the name of a file promises, where it is one that this Pillow was built without."""
    ending = os.path.splitext(name)[1].lower()
    for format_, feature in _OPTIONAL.items():
        if ending in FORMATS[format_] and (format_ not in _FORMATS or not features.check(feature)):
            return format_
    return None


def pil_to_array(image: Image.Image, size: int | None = None) -> NDArray[np.uint8]:
    """Convert a PIL image of any mode to uint8, upright as its EXIF orientation says.

    Transparency is composited on white. Deep grey is scaled from its range, black to white. The range of
    ``I;16`` is ``[0, 65535]``, or what the bits of a TIFF file can say, where a negative number is black.
    That of ``I`` is ``[0, 65535]`` of a PNG or PPM file; 32 bits, and images without a file, have no white of
    their own, so it is ``[0, 255]`` if all values lie there, else ``[0, 65535]``. That of ``F`` is ``[0, 1]``
    if all values lie there, else ``[0, 255]``. A value that is half a level outside lies in the range, NaN is
    black, and an image with values elsewhere is refused: nobody knows its black and white.

    An image of many times the size it will be brought to is averaged down by a whole number first, to no less
    than sixteen times that; any image of more than 16 million pixels is. This takes time off the resizing
    alone: what an image is read from makes no difference to its pixels.

    Args:
        image: The image; of several frames, the current one.
        size: The height and width it will be brought to, if it is known.

    Returns:
        ``(C, H, W)`` uint8, with ``C`` 1 for grey modes and 3 for all others.

    Raises:
        UserError: see `check_size`; and for numbers of 32 bits or floats that lie in neither range.
    """
    check_size(*image.size)
    image.load()  # a PNG's orientation may follow its pixels
    white = _white(image)
    # a TIFF file may say that its deep grey is upside down, which PIL undoes for 8 bits alone
    inverted = image.mode.startswith("I;16") and _tag(image, 262, 1) == 0  # PhotometricInterpretation
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = _deep_grey(image, white)
        if inverted:
            np.subtract(255, pixels, out=pixels)
        return np.array(_smaller(Image.fromarray(pixels), size))[None]

    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        if image.mode == "La":  # PIL undoes premultiplied alpha only towards LA
            image = image.convert("LA")
        image = _smaller(_converted(image, "RGBA"), size)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(_smaller(_converted(image, mode), size))  # (H, W) or (H, W, 3)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def smaller_by(width: int, height: int, size: int | None) -> int:
    """By how much an image is averaged down before it is brought to ``size``; applied twice, it is 1."""
    finer = min(width, height) // (_FINER * size) if size else 1
    return max(1, math.isqrt(width * height // _LARGE), finer)


def _smaller(image: Image.Image, size: int | None) -> Image.Image:
    factor = smaller_by(*image.size, size)
    return image.reduce(factor) if factor > 1 else image


def _white(image: Image.Image) -> float | None:
    """The value of white in deep grey, where the mode or the file says it; else None."""
    if image.mode.startswith("I;16"):
        bits = _tag(image, 258, 16)  # BitsPerSample
        return float(2**bits - 1) if 8 < bits <= 16 else 65535.0
    if image.mode == "I" and _tag(image, 258, 32) == 16:  # signed numbers
        return 32767.0
    return 65535.0 if image.mode == "I" and image.format in ("PNG", "PPM") else None


def _tag(image: Image.Image, number: int, default: int) -> int:
    if image.format != "TIFF":
        return default
    value = getattr(image, "tag_v2", {}).get(number, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _deep_grey(image: Image.Image, white: float | None) -> NDArray[np.uint8]:
    """16-bit and float grey -> ``(H, W)`` uint8, by strips, as numbers of 64 bits take much memory."""
    rows = max(1, _STRIP // image.width)

    def strips() -> Iterator[tuple[int, NDArray[np.float64]]]:
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            yield top, np.nan_to_num(np.asarray(strip, dtype=np.float64), posinf=np.inf, neginf=-np.inf)

    if white is None:
        white = _guessed_white(image.mode, [(values.min(), values.max()) for _, values in strips()])
    pixels = np.empty((image.height, image.width), np.uint8)
    for top, values in strips():
        pixels[top : top + len(values)] = ((values / white).clip(0, 1) * 255).round()
    return pixels


def _guessed_white(mode: str, extremes: Sequence[tuple[float, float]]) -> float:
    """The value of white where neither the mode nor the file says it.

    Args:
        mode: ``F`` or ``I``.
        extremes: the smallest and the largest value of each part of the image.

    Raises:
        UserError: where the values are of none of the ranges that images of this mode have.
    """
    least, most = min(low for low, _ in extremes), max(high for _, high in extremes)
    whites = (1.0, 255.0) if mode == "F" else (255.0, 65535.0)
    for white in whites:
        level = white / 255
        if least >= -level / 2 and most <= white + level / 2:
            return white
    what = "floats" if mode == "F" else "numbers of 32 bits"
    raise UserError(
        f"its values reach from {least:g} to {most:g}, where {what} are grey in 0 .. {whites[0]:g} or 0 .. "
        f"{whites[1]:g}: scale them, or save them as uint16, whose white is 65535"
    )


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # PIL copies what is of that mode already
