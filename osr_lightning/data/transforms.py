"""One preprocessing for every source: grey or colour, resized, stored as uint8, standardised per batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

# Values in one chunk of `to_uint8_images`: as float32 it takes 64 MB, however large the set.
_CHUNK_VALUES = 2**24


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
            # torchvision truncates on uint8 (white becomes 254): weigh as float and round, as PIL does
            chunk = F.rgb_to_grayscale(chunk.float()).round_().to(torch.uint8)  # (n, 1, H, W)
        if chunk.shape[2:] != (size, size):
            chunk = F.resize(chunk, [size, size], antialias=True)
        target.copy_(chunk)  # one channel is repeated to three by broadcasting
    return result


def pil_to_tensor(image: Image.Image) -> Tensor:
    """Convert a PIL image of any mode to uint8, upright as its EXIF orientation says.

    Transparency is composited on white. 16-bit grey (``I;16`` and ``I``) is scaled from ``[0, 65535]``.
    Float grey (``F``) is scaled from ``[0, 1]`` if no value lies above 1, else taken as ``[0, 255]``.

    Args:
        image: The image; of several frames, the current one.

    Returns:
        ``(C, H, W)`` uint8, with ``C`` 1 for grey modes and 3 for all others.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        if image.mode != "F":
            values = values / 65535
        elif values.max() > 1:
            values = values / 255
        return torch.from_numpy((values.clip(0, 1) * 255).round().astype(np.uint8))[None]

    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        if image.mode == "La":  # PIL undoes premultiplied alpha only towards LA
            image = image.convert("LA")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert(mode)))  # (H, W) or (H, W, 3)
    return pixels[None] if mode == "L" else pixels.permute(2, 0, 1)


def standardise(
    images: Tensor, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor
) -> Tensor:
    """Turn stored images into a network's input, ``(images / 255 - mean) / std``, on their own device.

    Args:
        images: ``(B, C, H, W)`` uint8.
        mean: Mean of each channel, or one for all, on the scale ``[0, 1]``.
        std: Standard deviation of each channel, or one for all, on the same scale.

    Returns:
        ``(B, C, H, W)`` float32.

    Raises:
        ValueError: The images are not uint8, so they may be standardised already.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    pixels = images.to(torch.float32)
    if isinstance(mean, float) and isinstance(std, float):  # numbers are quicker than tensors of one
        return pixels.mul_(1 / (255 * std)).sub_(mean / std)
    mean, std = (
        torch.as_tensor(value, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        for value in (mean, std)
    )
    return pixels.div_(255).sub_(mean).div_(std)
