"""The one way in for every image: file, PIL image, array or tensor -> uint8 ``(C, H, W)`` of a given size.

Files and PIL images are turned into pixels by ``decode``. Nothing here needs torch; ``tensors`` does
the same to images in bulk, many times as fast.
"""

from __future__ import annotations

import io
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeGuard, Union, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osr_lightning.data_spec import DataSpec, PixelFormat
from osr_lightning.errors import UserError
from osr_lightning.images.decode import check_size, pil_to_array, read_image, reason, smaller_by

if TYPE_CHECKING:
    from torch import Tensor

ImageLike: TypeAlias = Union[str, Path, bytes, BinaryIO, Image.Image, NDArray[Any], "Tensor"]

LONGEST = 4  # times the shorter side, of which a middle square is cut out
_MOST_BITS = 22  # of a weight's fraction
_STRIP = 2**20  # values that are 64 bits wide at once
# by which a float may be outside, as in a file: what a filter gave is in no exact range
_HALF_LEVEL = 0.5 / 255
# torch's weights of red, green and blue, as the 32 bits that it multiplies with
_RED, _GREEN, _BLUE = (float(np.float32(weight)) for weight in (0.2989, 0.587, 0.114))


def to_pixels(image: ImageLike, size: int | None = None) -> NDArray[np.uint8]:
    """Any one image -> ``(C, H, W)`` uint8 with ``C`` 1 or 3.

    A path, its bytes, the PIL image, the array and the tensor of one picture give the same pixels.

    Args:
        image: a path; the bytes of an image file, or that file open for reading them; a PIL image; an array
            ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``; or a tensor ``(H, W)``, ``(C, H, W)`` or
            ``(H, W, C)``; ``C`` is 1, 2 (grey and alpha), 3 or 4 (with alpha). Where both ends could be
            ``C``, an array has it last and a tensor first. Values are uint8; bool; uint16, scaled from
            ``[0, 65535]``; other whole numbers that lie in ``[0, 255]``, taken as they are; or floats in
            ``[0, 1]``, where half a level outside lies in the range.
        size: the height and width it will be brought to, if it is known; see `pil_to_array`.

    Raises:
        UserError: if the image is none of these; it says why.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, size)
    if isinstance(image, bytes):
        return read_image(io.BytesIO(image), size, "in the bytes")
    if isinstance(image, io.IOBase):
        return read_image(cast(BinaryIO, image), size, str(getattr(image, "name", "in the open file")))
    if isinstance(image, Image.Image):
        try:
            return pil_to_array(image, size)
        except Exception as error:  # PIL decodes late
            raise UserError(f"Cannot read the PIL image ({reason(error)}).") from error
    if not isinstance(image, np.ndarray) and not is_tensor(image):
        raise UserError(
            "An image is a path, the bytes of a file or an open one, a PIL image, an array or a tensor, not "
            f"{type(image).__name__}; numbers in lists become one by numpy.array."
        )
    channels_first = not isinstance(image, np.ndarray)
    array = image if isinstance(image, np.ndarray) else _to_numpy(image)
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3:
        first, last = array.shape[0] in (1, 2, 3, 4), array.shape[2] in (1, 2, 3, 4)
        if first and (channels_first or not last):
            array = array.transpose(1, 2, 0)
        elif not last:
            array = array[..., :0]
    if array.ndim != 3 or 0 in array.shape:
        raise UserError(
            f"An image has the shape (H, W), or (H, W, C) as array and (C, H, W) as tensor with C from 1 to "
            f"4, not {tuple(image.shape)}; several grey tensors are (N, 1, H, W)."
        )
    height, width, channels = array.shape
    try:
        check_size(width, height)
    except UserError as error:
        raise UserError(f"Cannot read the image ({error}); make it smaller.") from error
    values = np.ascontiguousarray(_to_uint8(array))
    if channels in (2, 4) or smaller_by(width, height, size) > 1:  # composited or averaged as PIL images are
        return pil_to_array(Image.fromarray(values[..., 0] if channels == 1 else values), size)
    return values.copy().transpose(2, 0, 1)


def is_tensor(image: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor of torch, which is not imported to tell."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(image, torch.Tensor)


def _to_numpy(image: Tensor) -> NDArray[Any]:
    if str(image.dtype) == "torch.bfloat16":
        image = image.float()
    try:
        return image.detach().cpu().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"Cannot read the tensor ({reason(error)}); give a dense one.") from error


def _to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.newbyteorder("=") == np.uint16:
        return np.asarray((values / 65535 * 255).round(), np.uint8)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if low >= -_HALF_LEVEL and high <= 1 + _HALF_LEVEL:  # False for NaN
            return np.asarray((values.astype(np.float64).clip(0, 1) * 255).round(), np.uint8)
        if np.isnan(low):
            raise UserError("A float image has NaN; put values in its place, as numpy.nan_to_num does.")
        raise UserError(
            f"Float images have values in [0, 1], not from {low:g} to {high:g}: give uint8, or divide by the "
            "value of white, as 255."
        )
    if values.dtype.kind in "iu":
        least, most = int(values.min()), int(values.max())
        if least >= 0 and most <= 255:
            return values.astype(np.uint8)
        raise UserError(
            f"{values.dtype} images have values in [0, 255], not from {least} to {most}; convert them to "
            "uint8, or to uint16, which is scaled from [0, 65535]."
        )
    raise UserError(f"Images are whole numbers, bool or float, not {values.dtype}; convert them to uint8.")


def prepared(image: ImageLike, spec: DataSpec) -> NDArray[np.uint8]:
    """Any one image -> what a network of this data spec takes, ``(channels, image_size, image_size)``.

    Args:
        image: see `to_pixels`.
        spec: of the known images.

    Raises:
        UserError: if it is no image or cannot be read.
    """
    return to_input(to_pixels(image, spec.resize or spec.image_size), spec)


def to_input(image: NDArray[np.uint8], spec: DataSpec | PixelFormat) -> NDArray[np.uint8]:
    """Pixels ``(C, H, W)`` with ``C`` 1 or 3 -> ``(channels, image_size, image_size)``."""
    if spec.resize is None:
        return fit(image, size=spec.image_size, channels=spec.channels)
    picture = to_picture(image)
    if spec.channels < len(image):
        picture = picture.convert("L")
    # of a long banner the ends are not even resized; its middle stays where it was
    ends = [max(0, side - LONGEST * min(picture.size)) // 2 for side in picture.size]
    if any(ends):
        (left, top), (width, height) = ends, picture.size
        picture = picture.crop((left, top, width - left, height - top))
    # rounded as the transforms that are published with weights do it
    sides = [int(spec.resize * side / min(picture.size)) for side in picture.size]
    picture = picture.resize((sides[0], sides[1]), Image.Resampling[spec.interpolation.upper()])
    left, top = (round((side - spec.image_size) / 2) for side in sides)
    planes = of_picture(picture.crop((left, top, left + spec.image_size, top + spec.image_size)))
    return np.ascontiguousarray(np.broadcast_to(planes, (spec.channels, *planes.shape[1:])))


def to_picture(pixels: NDArray[np.uint8]) -> Image.Image:
    """Pixels ``(C, H, W)`` with ``C`` 1 or 3 as one of PIL's images, grey or RGB."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def of_picture(picture: Image.Image) -> NDArray[np.uint8]:
    """The inverse of `to_picture`."""
    found = np.array(picture)
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def picture_file(picture: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    """The file of a picture, of a kind and with options as PIL has them."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def fit(image: NDArray[np.uint8], *, size: int, channels: int) -> NDArray[np.uint8]:
    """Bring one image to a size and number of channels: what `tensors.to_uint8_images` does.

    Every pixel is the one that torch's kernels for uint8 give on x86 processors with AVX; without AVX
    torch's own differ from it by one level at most.

    Args:
        image: ``(C, H, W)`` with ``C`` 1 or 3.
        size: height and width of the result.
        channels: of the result, 1 or 3.

    Returns:
        ``(channels, size, size)``.
    """
    if channels < len(image):
        rows = max(1, _STRIP // image[:, 0].size)
        strips = [_grey(image[:, top : top + rows]) for top in range(0, image.shape[1], rows)]
        image = np.concatenate(strips)[None]
    if size == 1:
        image = image.mean((1, 2), dtype=np.float64, keepdims=True).round().astype(np.uint8)
    elif image.shape[1:] != (size, size):
        rows = max(1, _STRIP // image[:, 0].size)
        strips = [image[:, top : top + rows] for top in range(0, image.shape[1], rows)]
        across = np.concatenate([_resize_rows(strip.astype(np.float64), size) for strip in strips], 1)
        image = _resize_rows(across.swapaxes(1, 2), size).swapaxes(1, 2).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (channels, size, size)))


def _grey(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(3, H, W)`` -> ``(H, W)``."""
    red, green, blue = colours.astype(np.float64)
    # each sum is rounded to 32 bits, as torch's fused multiplications are
    grey = ((red * _RED).astype(np.float32) + _GREEN * green).astype(np.float32)
    levels: NDArray[np.uint8] = (grey + _BLUE * blue).astype(np.float32).round().astype(np.uint8)
    return levels


@lru_cache(maxsize=16)  # images of one shape share them
def _columns(length: int, size: int) -> tuple[list[tuple[int, int, NDArray[np.float64]]], int]:
    """Of each column of the result, which columns make it and with what weights, in how many bits."""
    scale = length / size
    reach = max(scale, 1.0)
    columns = []
    for position in range(size):
        center = scale * (position + 0.5)
        begin, end = max(int(center - reach + 0.5), 0), min(int(center + reach + 0.5), length)
        weights = np.maximum(0, 1 - np.abs((np.arange(begin, end) - center + 0.5) / reach))
        columns.append((begin, end, weights / weights.sum()))
    largest = max(weights.max() for _, _, weights in columns)
    bits = next((b for b in range(_MOST_BITS) if int(0.5 + largest * 2 ** (b + 1)) >= 2**15), _MOST_BITS - 1)
    return [(begin, end, np.trunc(weights * 2**bits + 0.5)) for begin, end, weights in columns], bits


def _resize_rows(image: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Antialiased bilinear interpolation of whole numbers ``(C, H, W)`` to ``(C, H, size)``, rounded.

    Weights are whole numbers of 16 bits, as torch has them; their sums are exact in float64.
    """
    length = image.shape[2]
    if length == size:
        return image
    columns, bits = _columns(length, size)
    result = np.empty((*image.shape[:2], size))
    for position, (begin, end, weights) in enumerate(columns):
        result[:, :, position] = image[:, :, begin:end] @ weights
    result += 2 ** (bits - 1)
    result /= 2**bits
    return np.floor(result, out=result).clip(0, 255, out=result)
