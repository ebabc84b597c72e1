"""PixMix: training images mixed with pictures of intricate structure, which change no label."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from osr_lightning.data import pixel_ops
from osr_lightning.data.augment import random_parts
from osr_lightning.data.sources import load_source
from osr_lightning.data.stream import Images
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError

_ROUNDS = 4  # at most
_BETA = 3  # how strongly images are mixed
_SEVERITY = 3  # of 10, of a change, at most
_LEAST = 1e-37  # what is raised to a negative power


class PixMix:
    """Mixes each image up to four times with a picture or a changed copy of itself, by sums or products.

    Hendrycks et al., PixMix: Dreamlike Pictures Comprehensively Improve Safety Measures, CVPR 2022, with the
    changes and strengths that the authors' code has for CIFAR. What is mixed is rounded to whole values.

    Args:
        pictures: to mix with, ``(M, C, H, W)`` uint8, no smaller than the images; a part of the images' size
            is taken at a random place.
    """

    def __init__(self, pictures: Images) -> None:
        self.pictures = pictures

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` uint8 -> others of that shape, on the same device."""
        rounds = torch.randint(_ROUNDS + 1, (len(images),))
        result = _half_changed(images, images).float() / 255
        for number in range(_ROUNDS):
            rows = (rounds > number).nonzero().flatten().to(images.device)
            if len(rows):
                own = images[rows]
                other = _half_changed(own, self._parts(own))
                result[rows] = mix(result[rows], other.float() / 255)
        return (255 * result).round_().to(torch.uint8)

    def _parts(self, like: Tensor) -> Tensor:
        """A part of a picture for each of the images ``like``, of their size."""
        count, _, height, width = like.shape
        chosen = self.pictures[torch.randint(len(self.pictures), (count,))]
        return random_parts(chosen, height, width).to(like.device)


def mix(images: Tensor, others: Tensor) -> Tensor:
    """Weighted sums or products of images ``(B, C, H, W)`` in ``[0, 1]`` with others, cut off there.

    With equal chance the weights are ``a`` of Beta(3, 1) and ``b`` of Beta(1, 3), or ``1 + a`` and ``-b`` of
    Beta(1, 3) both. With equal chance the result is ``(a (2x - 1) + b (2y - 1) + 1) / 2`` or
    ``(2x)^a (2y)^b / 2``.
    """
    shape, device = (len(images), 1, 1, 1), images.device
    strong, weak, more = (
        torch.distributions.Beta(torch.tensor(float(p)), torch.tensor(float(q))).sample(shape)
        for p, q in ((_BETA, 1), (1, _BETA), (1, _BETA))
    )
    within, summed = torch.rand(2, *shape) < 0.5
    a = torch.where(within, strong, 1 + more).to(device)
    b = torch.where(within, weak, -weak).to(device)
    sums = (a * (2 * images - 1) + b * (2 * others - 1) + 1) / 2
    products = (2 * images) ** a * (2 * others).clamp(min=_LEAST) ** b / 2
    return torch.where(summed.to(device), sums, products).clamp(0, 1)


def _half_changed(images: Tensor, others: Tensor) -> Tensor:
    """For half of the images a changed copy, for the others what stands in their place among ``others``."""
    rows = (torch.rand(len(images)) < 0.5).nonzero().flatten().to(images.device)
    found = others.clone()
    if len(rows):
        found[rows] = _changed(images[rows])
    return found


def _changed(images: Tensor) -> Tensor:
    """Each image changed by one of nine operations of its own strength."""
    count = len(images)
    strengths = (0.1 + (_SEVERITY - 0.1) * torch.rand(count, dtype=torch.float64)) / 10
    turned = torch.rand(count) < 0.5
    operations: list[str] = []
    magnitudes: list[float] = []
    side = images.shape[-1]
    choices = torch.randint(9, (count,)).tolist()
    for choice, strength, back in zip(choices, strengths.tolist(), turned.tolist(), strict=True):
        sign = -1 if back else 1
        operation, magnitude = (
            ("autocontrast", 0.0),
            ("equalize", 0.0),
            ("posterize", 4 - int(4 * strength)),
            ("solarize", 256 - int(256 * strength)),
            ("rotate", sign * int(30 * strength)),
            ("shear_x", sign * 0.3 * strength),
            ("shear_y", sign * 0.3 * strength),
            ("translate_x", sign * int(side / 3 * strength) / side),
            ("translate_y", sign * int(side / 3 * strength) / side),
        )[choice]
        operations.append(operation)
        magnitudes.append(magnitude)
    return pixel_ops.change_each(images, operations, magnitudes, smooth=True)


def read_pixmix(folder: str, spec: DataSpec) -> PixMix:
    """PixMix with the pictures of a folder, an eighth larger than images of the spec.

    Raises:
        UserError: if the folder is missing or holds no picture that can be read.
    """
    if not Path(folder).expanduser().is_dir():
        raise UserError(f"model.pixmix: there is no folder {folder}; name one of pictures, or leave it out")
    size = spec.image_size + spec.image_size // 8
    found = load_source(f"folder:{folder}", "train", root=Path(), channels=spec.channels, size=size)
    return PixMix(found.images)
