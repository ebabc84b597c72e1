"""Changes of pixels by torchvision, each image of a batch by its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

# images (B, C, H, W) uint8 and a magnitude -> such images; what is beyond an edge is black
Operation: TypeAlias = Callable[[Tensor, float], Tensor]


def apply_each(images: Tensor, operations: Sequence[Operation], magnitudes: Sequence[float]) -> Tensor:
    """Change each image by its own operation.

    Args:
        images: ``(B, C, H, W)`` uint8.
        operations: ``B`` of them; images with the same one and the same magnitude are changed together.
        magnitudes: ``B`` of them, in units of the operation.

    Returns:
        Images as the given ones, which stay as they are.
    """
    groups: dict[tuple[Operation, float], list[int]] = {}
    for place, key in enumerate(zip(operations, magnitudes, strict=True)):
        groups.setdefault(key, []).append(place)
    changed = images.clone()
    # a matrix product of places would be coarse in bfloat16
    with torch.autocast(images.device.type, enabled=False):
        for (operation, magnitude), places in groups.items():
            changed[places] = operation(images[places], magnitude)
    return changed


def identity(images: Tensor, by: float) -> Tensor:
    """The images as they are."""
    return images


def shear_x(images: Tensor, by: float, smooth: bool = False) -> Tensor:
    """Move each row by ``by`` pixels more than the one above it."""
    return _affine(images, smooth, shear=[math.degrees(math.atan(by)), 0.0], center=[0, 0])


def shear_y(images: Tensor, by: float, smooth: bool = False) -> Tensor:
    """Move each column by ``by`` pixels more than the one before it."""
    return _affine(images, smooth, shear=[0.0, math.degrees(math.atan(by))], center=[0, 0])


def translate_x(images: Tensor, by: float, smooth: bool = False) -> Tensor:
    """Move to the right by whole pixels, a share ``by`` of the width."""
    return _affine(images, smooth, translate=[int(by * images.shape[3]), 0])


def translate_y(images: Tensor, by: float, smooth: bool = False) -> Tensor:
    """Move down by whole pixels, a share ``by`` of the height."""
    return _affine(images, smooth, translate=[0, int(by * images.shape[2])])


def rotate(images: Tensor, by: float, smooth: bool = False) -> Tensor:
    """Turn against the clock by degrees."""
    return cast(Tensor, _torchvision().rotate(images, by, interpolation=_how(smooth)))


def brightness(images: Tensor, by: float) -> Tensor:
    """Multiply by ``1 + by``."""
    return cast(Tensor, _torchvision().adjust_brightness(images, 1 + by))


def colour(images: Tensor, by: float) -> Tensor:
    """Move away from grey by ``by``."""
    return cast(Tensor, _torchvision().adjust_saturation(images, 1 + by))


def contrast(images: Tensor, by: float) -> Tensor:
    """Move away from the image's mean by ``by``."""
    return cast(Tensor, _torchvision().adjust_contrast(images, 1 + by))


def sharpness(images: Tensor, by: float) -> Tensor:
    """Move away from the blurred image by ``by``."""
    return cast(Tensor, _torchvision().adjust_sharpness(images, 1 + by))


def posterize(images: Tensor, by: float) -> Tensor:
    """Keep the ``by`` highest of eight bits, a whole number after rounding."""
    return cast(Tensor, _torchvision().posterize(images, round(by)))


def solarize(images: Tensor, by: float) -> Tensor:
    """Invert what is ``by`` or brighter."""
    return cast(Tensor, _torchvision().solarize(images, by))


def autocontrast(images: Tensor, by: float) -> Tensor:
    """Stretch each channel from 0 to 255."""
    return cast(Tensor, _torchvision().autocontrast(images))


def equalize(images: Tensor, by: float) -> Tensor:
    """Give each channel a flat histogram."""
    return cast(Tensor, _torchvision().equalize(images))


def _torchvision() -> Any:  # noqa: ANN401
    """What takes a second to import, and training alone needs."""
    from torchvision.transforms.v2 import functional

    return functional


def _how(smooth: bool) -> Any:  # noqa: ANN401
    from torchvision.transforms import InterpolationMode

    return InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST


def _affine(
    images: Tensor,
    smooth: bool,
    translate: Sequence[int] = (0, 0),
    shear: Sequence[float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Tensor:
    options = {"interpolation": _how(smooth), "center": center}
    moved = _torchvision().affine(images, 0.0, list(translate), 1.0, list(shear), **options)
    return cast(Tensor, moved)
