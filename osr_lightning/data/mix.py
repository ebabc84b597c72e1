"""Mixing of the images of a training batch, whose targets become shares of classes.

A new way is one function under `register`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Mix: TypeAlias = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
MIXES: dict[str, Mix] = {}
_ALPHA = 1.0  # of the Beta distribution of the share: both papers' for CIFAR, which makes it uniform


def register(function: Mix) -> Mix:
    """Make a way known by its name.

    It takes images ``(B, C, H, W)``, labels ``(B,)`` int64 and ``K``, and gives images and each one's shares
    of the classes ``(B, K)``, which add up to 1.
    """
    MIXES[function.__name__] = function
    return function


@register
def none(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The images as they are, with their labels ``(B,)``."""
    return images, labels


@register
def mixup(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weighted means of two images; Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018."""
    from torchvision.transforms import v2

    mixed: tuple[Tensor, Tensor] = v2.MixUp(alpha=_ALPHA, num_classes=num_classes)(images, labels)
    return mixed


@register
def cutmix(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """A rectangle of another image in each; Yun et al., CutMix: Regularization Strategy, ICCV 2019."""
    from torchvision.transforms import v2

    mixed: tuple[Tensor, Tensor] = v2.CutMix(alpha=_ALPHA, num_classes=num_classes)(images, labels)
    return mixed
