"""Changes of pixels by torchvision, each image of a batch by its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

# torchvision's functions, images (B, C, H, W) uint8, a magnitude and an interpolation -> such images
_Change: TypeAlias = Callable[[Any, Tensor, float, Any], Any]
# by name; what is beyond an edge is black
OPERATIONS: dict[str, _Change] = {
    "identity": lambda to, images, by, how: images,
    # each row by so many pixels more than the one above it, each column than the one before it
    "shear_x": lambda to, images, by, how: _affine(to, images, how, shear=[_angle(by), 0.0], center=[0, 0]),
    "shear_y": lambda to, images, by, how: _affine(to, images, how, shear=[0.0, _angle(by)], center=[0, 0]),
    # to the right or down by whole pixels, a share of the width or height
    "translate_x": lambda to, images, by, how: _affine(to, images, how, [int(by * images.shape[3]), 0]),
    "translate_y": lambda to, images, by, how: _affine(to, images, how, [0, int(by * images.shape[2])]),
    # against the clock by degrees
    "rotate": lambda to, images, by, how: to.rotate(images, by, interpolation=how),
    # away from black, from grey, from the image's mean and from the blurred image
    "brightness": lambda to, images, by, how: to.adjust_brightness(images, 1 + by),
    "colour": lambda to, images, by, how: to.adjust_saturation(images, 1 + by),
    "contrast": lambda to, images, by, how: to.adjust_contrast(images, 1 + by),
    "sharpness": lambda to, images, by, how: to.adjust_sharpness(images, 1 + by),
    # to the highest of eight bits, a whole number after rounding
    "posterize": lambda to, images, by, how: to.posterize(images, round(by)),
    # inverts what is so bright or brighter
    "solarize": lambda to, images, by, how: to.solarize(images, by),
    # stretches each channel from 0 to 255, or gives it a flat histogram
    "autocontrast": lambda to, images, by, how: to.autocontrast(images),
    "equalize": lambda to, images, by, how: to.equalize(images),
}


def change(images: Tensor, operation: str, by: float, smooth: bool = False) -> Tensor:
    """Change all images in the same way.

    Args:
        images: ``(B, C, H, W)`` uint8.
        operation: of ``OPERATIONS``.
        by: the magnitude, in units of the operation.
        smooth: whether what is moved is interpolated between pixels.
    """
    # take a second to import, and training alone needs them
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional

    how = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST
    return cast(Tensor, OPERATIONS[operation](functional, images, by, how))


def change_each(
    images: Tensor, operations: Sequence[str], magnitudes: Sequence[float], smooth: bool = False
) -> Tensor:
    """Change each image by its own operation.

    Args:
        images: ``(B, C, H, W)`` uint8.
        operations: ``B`` of them; images with the same one and the same magnitude are changed together.
        magnitudes: ``B`` of them.
        smooth: see `change`.

    Returns:
        Images as the given ones, which stay as they are.
    """
    groups: dict[tuple[str, float], list[int]] = {}
    for place, key in enumerate(zip(operations, magnitudes, strict=True)):
        groups.setdefault(key, []).append(place)
    changed = images.clone()
    # a matrix product of places would be coarse in bfloat16
    with torch.autocast(images.device.type, enabled=False):
        for (operation, magnitude), places in groups.items():
            changed[places] = change(images[places], operation, magnitude, smooth)
    return changed


def _angle(by: float) -> float:
    return math.degrees(math.atan(by))


def _affine(
    to: Any,  # noqa: ANN401
    images: Tensor,
    how: Any,  # noqa: ANN401
    translate: Sequence[int] = (0, 0),
    shear: Sequence[float] = (0.0, 0.0),
    center: list[float] | None = None,
) -> Tensor:
    moved = to.affine(images, 0.0, list(translate), 1.0, list(shear), interpolation=how, center=center)
    return cast(Tensor, moved)
