"""Images in bulk: to one size and number of channels, and to what a network takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_VALUES = 2**24  # in one chunk of `to_uint8_images`: 64 MB as float32, however large the set


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
        kind = f"{type(images).__module__}.{type(images).__name__}"
        raise ValueError(f"images must be a tensor of uint8, not {kind} of {images.dtype}")
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
