"""The one way in for every image: file, PIL image, array or tensor -> uint8 ``(C, H, W)`` of a given size.

Files and PIL images are turned into pixels by ``decoding``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from osr_lightning.decoding import pil_to_tensor, read_image, reason
from osr_lightning.errors import UserError

ImageLike: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor

_CHUNK_VALUES = 2**24  # in one chunk of `to_uint8_images`: 64 MB as float32, however large the set


def to_pixels(image: ImageLike, size: int | None = None) -> Tensor:
    """Any one image -> ``(C, H, W)`` uint8 with ``C`` 1 or 3.

    Args:
        image: a path; a PIL image; an array ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``; or a tensor
            ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)``; ``C`` is 1, 2 (grey and alpha), 3 or 4 (with alpha).
            Values are uint8, uint16 (scaled from ``[0, 65535]``), bool, or floats in ``[0, 1]``.
        size: see `read_image`.

    Raises:
        UserError: if the image is none of these; it says why.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, size)
    if isinstance(image, Image.Image):
        try:
            return pil_to_tensor(image)
        except Exception as error:  # PIL decodes late
            raise UserError(f"Cannot read the PIL image ({reason(error)}).") from error
    if not isinstance(image, (np.ndarray, Tensor)):
        raise UserError(f"An image is a path, a PIL image, an array or a tensor, not {type(image).__name__}.")
    channels_first = isinstance(image, Tensor)
    array = _to_numpy(image) if isinstance(image, Tensor) else image
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
            f"4, not {tuple(image.shape)}."
        )
    values = np.ascontiguousarray(_to_uint8(array))
    if values.shape[2] in (2, 4):
        return pil_to_tensor(Image.fromarray(values))  # composites the alpha
    return torch.from_numpy(values.copy()).permute(2, 0, 1)


def _to_numpy(image: Tensor) -> NDArray[Any]:
    if image.dtype == torch.bfloat16:
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
        if low >= 0 and high <= 1:  # False for NaN
            return np.asarray((values.astype(np.float64) * 255).round(), np.uint8)
        raise UserError(f"Float images have values in [0, 1], not from {low:g} to {high:g}; rescale them.")
    raise UserError(f"Images are uint8, uint16, bool or float, not {values.dtype}; convert them to uint8.")


def to_uint8_images(images: Tensor, *, size: int, channels: int) -> Tensor:
    """Bring images to one size and one number of channels, in bulk.

    Colour becomes grey by the ITU-R 601 weights, rounded; grey becomes colour by repetition; images of
    another size are resized to a square with antialiased bilinear interpolation, whatever their shape.

    Args:
        images: ``(N, C, H, W)`` uint8 with ``C`` 1 or 3.
        size: Height and width of the result.
        channels: Channels of the result, 1 or 3.

    Returns:
        ``(N, channels, size, size)`` uint8, contiguous; ``images`` itself where it already is that.

    Raises:
        ValueError: ``images``, ``size`` or ``channels`` is none of the above.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images must be uint8 of shape (N, 1 or 3, H, W), not {images.dtype} {tuple(images.shape)}"
        )
    if size < 1 or channels not in (1, 3):
        raise ValueError(f"size must be at least 1 and channels 1 or 3, not {size} and {channels}")
    if images.shape[1:] == (channels, size, size):
        return images.contiguous()

    result = torch.empty((len(images), channels, size, size), dtype=torch.uint8)
    step = max(1, _CHUNK_VALUES // max(1, images[:1].numel()))
    for chunk, target in zip(torch.split(images, step), torch.split(result, step), strict=True):
        if channels < chunk.shape[1]:
            red, green, blue = chunk.float().unbind(1)
            # rounded, as PIL does: truncated, white would become 254
            grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
            chunk = grey.round_().to(torch.uint8).unsqueeze(1)  # (n, 1, H, W)
        if size == 1:  # torch's kernel fails here
            chunk = chunk.float().mean((2, 3), keepdim=True).round_().to(torch.uint8)
        elif chunk.shape[2:] != (size, size):
            chunk = F.interpolate(chunk, (size, size), mode="bilinear", antialias=True)
        target.copy_(chunk)  # one channel is repeated to three by broadcasting
    return result


def prepare(images: Sequence[ImageLike], *, size: int, channels: int) -> Tensor:
    """Images of any kind and size -> ``(N, channels, size, size)`` uint8.

    Raises:
        UserError: for the first that is no image.
    """
    found = [to_uint8_images(to_pixels(i, size)[None], size=size, channels=channels) for i in images]
    return torch.cat(found) if found else torch.empty((0, channels, size, size), dtype=torch.uint8)


def standardise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn stored images into a network's input, ``(images / 255 - mean) / std``, on their own device.

    Args:
        images: ``(B, C, H, W)`` uint8.
        mean: ``C`` means on the scale ``[0, 1]``.
        std: ``C`` standard deviations on the same scale.

    Returns:
        ``(B, C, H, W)`` float32.

    Raises:
        ValueError: The images are not uint8, so they may be standardised already.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    pixels = images.to(torch.float32)
    if len(mean) == 1:  # numbers are quicker than tensors of one
        return pixels.mul_(1 / (255 * std[0])).sub_(mean[0] / std[0])
    scale, shift = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        for values in (
            [1 / (255 * s) for s in std],
            [-m / s for m, s in zip(mean, std, strict=True)],
        )
    )
    return pixels.mul_(scale).add_(shift)
