"""Augmentation of whole batches on their device, in training only; each image has its own draw.

A new augmentation is one function under `register`, or under `register_on_pixels` if it changes pixels before
they are standardised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from osr_lightning.data import pixel_ops

Augmentation: TypeAlias = Callable[[Tensor], Tensor]
AUGMENTATIONS: dict[str, Augmentation] = {}  # of standardised images
ON_PIXELS: dict[str, Augmentation] = {}


def register(function: Augmentation) -> Augmentation:
    """Make a function from standardised images ``(B, C, H, W)`` to others of that shape known by its name."""
    AUGMENTATIONS[function.__name__] = function
    return function


def register_on_pixels(function: Augmentation) -> Augmentation:
    """Make a function from pixels ``(B, C, H, W)`` uint8 to others of that shape known by its name."""
    ON_PIXELS[function.__name__] = function
    return function


def names() -> list[str]:
    """Of all augmentations."""
    return [*AUGMENTATIONS, *ON_PIXELS]


def augment(name: str, pixels: Tensor, standardise: Callable[[Tensor], Tensor]) -> Tensor:
    """Augment and standardise.

    Args:
        name: of an augmentation.
        pixels: ``(B, C, H, W)`` uint8; of a backbone's features ``(B, D)`` in their place nothing is changed
            by ``none``.
        standardise: pixels -> a network's input.
    """
    if name in ON_PIXELS:
        return standardise(ON_PIXELS[name](pixels))
    return AUGMENTATIONS[name](standardise(pixels))


@register
def none(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


@register
def digits(images: Tensor) -> Tensor:
    """For characters and the like: turned by up to 10 degrees, scaled and shifted by up to a tenth."""
    return affine(images, degrees=10, scale=0.1, shift=0.1)


@register
def photos(images: Tensor) -> Tensor:
    """For photographs: half of them mirrored, shifted by up to an eighth of a side."""
    return crop(mirror(images))


@register
def photos_strong(images: Tensor) -> Tensor:
    """``photos``, brightness and contrast changed, a square left out (Cutout, DeVries & Taylor 2017)."""
    return erase(tint(crop(mirror(images))))


_MAGNITUDE = 9 / 30  # of what an operation can do at most
_RANDOM = 2  # operations per image
# what an operation does at most, from what it does at least, and whether it is turned round half of the time
_OPERATIONS: tuple[tuple[str, float, float, bool], ...] = (
    ("identity", 0, 0, False),
    ("shear_x", 0, 0.3, True),
    ("shear_y", 0, 0.3, True),
    ("translate_x", 0, 150 / 331, True),
    ("translate_y", 0, 150 / 331, True),
    ("rotate", 0, 30, True),
    ("brightness", 0, 0.9, True),
    ("colour", 0, 0.9, True),
    ("contrast", 0, 0.9, True),
    ("sharpness", 0, 0.9, True),
    ("posterize", 8, 4, False),
    ("solarize", 255, 0, False),
    ("autocontrast", 0, 0, False),
    ("equalize", 0, 0, False),
)


@register_on_pixels
def rand_augment(images: Tensor) -> Tensor:
    """``photos``, and two of 14 changes of form and colour at random, of one magnitude.

    Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, NeurIPS
    2020; the operations, their ranges and the magnitude (9 of 30) are torchvision's.
    """
    changed = photos(images.float()).to(torch.uint8)  # which makes no new values
    for _ in range(_RANDOM):
        chosen = [_OPERATIONS[number] for number in torch.randint(len(_OPERATIONS), (len(images),)).tolist()]
        turned = (torch.rand(len(images)) < 0.5).tolist()
        magnitudes = [
            (-1 if both and back else 1) * (least + _MAGNITUDE * (most - least))
            for (_, least, most, both), back in zip(chosen, turned, strict=True)
        ]
        changed = pixel_ops.change_each(changed, [operation for operation, *_ in chosen], magnitudes)
    return changed


def affine(images: Tensor, *, degrees: float, scale: float, shift: float) -> Tensor:
    """Turn, scale and shift each image at random, up to the given amounts; edges are continued.

    Args:
        images: ``(B, C, H, W)`` float.
        degrees: largest turn.
        scale: largest change of scale, as a share.
        shift: largest shift, as a share of a side.
    """
    device, (height, width) = images.device, images.shape[2:]
    angle, zoom, right, down = 2 * torch.rand(4, len(images), 1, 1, device=device) - 1
    zoom = 1 + scale * zoom
    cos, sin = (zoom * f(angle * degrees * math.pi / 180) for f in (torch.cos, torch.sin))
    # pixels' centres from -1 to 1; number by number, as a matrix product would be coarse under autocast
    y, x = ((2 * torch.arange(size, device=device) + 1) / size - 1 for size in (height, width))
    across = cos * x - sin * y[:, None] + 2 * shift * right  # (B, H, W)
    along = sin * x + cos * y[:, None] + 2 * shift * down
    grid = torch.stack([across, along], dim=-1)
    moved: Tensor = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return moved.to(images.dtype)


def mirror(images: Tensor) -> Tensor:
    """Mirror each image left to right with probability one half."""
    chosen = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(chosen, images.flip(-1), images)


def crop(images: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its sides, what lies beyond its edges mirrored."""
    height, width = images.shape[2:]
    down, right = height // 8, width // 8
    padded = F.pad(images, (right, right, down, down), mode="reflect")
    return random_parts(padded, height, width)


def random_parts(images: Tensor, height: int, width: int) -> Tensor:
    """A part of each image ``(B, C, H, W)``, ``(B, C, height, width)``, from a random place."""
    batch, channels, device = len(images), images.shape[1], images.device
    rows, columns = (
        torch.randint(whole - part + 1, (batch, 1), device=device) + torch.arange(part, device=device)
        for whole, part in zip(images.shape[2:], (height, width), strict=True)
    )
    which = torch.arange(batch, device=device)[:, None, None, None]
    layer = torch.arange(channels, device=device)[None, :, None, None]
    return images[which, layer, rows[:, None, :, None], columns[:, None, None, :]]


def tint(images: Tensor) -> Tensor:
    """Change brightness by up to 0.2 deviations and contrast by up to a fifth, at random."""
    light, contrast = (0.4 * torch.rand(2, len(images), 1, 1, 1, device=images.device) - 0.2).to(images.dtype)
    tinted: Tensor = images * (1 + contrast) + light
    return tinted


def erase(images: Tensor) -> Tensor:
    """Set a square of a quarter of each side to 0, the mean of the training images, at a random place."""
    outside = []
    for size in images.shape[2:]:
        begin = torch.randint(size, (len(images), 1), device=images.device) - size // 8
        place = torch.arange(size, device=images.device)
        outside.append((place < begin) | (place >= begin + (max(1, size // 4) if size > 1 else 0)))
    rows, columns = outside
    kept: Tensor = images * (rows[:, None, :, None] | columns[:, None, None, :])
    return kept
