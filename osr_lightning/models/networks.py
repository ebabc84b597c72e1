"""Plain networks, images ``(B, C, H, W)`` -> logits ``(B, K)``, in three parts: trunk, dropout, head.

Everything before the dropout is the same for every sample of MC dropout, so the samplers run the trunk once
per image and repeat only what follows. A new network is one more subclass of `SplitNetwork` under `register`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError

Network = TypeVar("Network", bound=type[nn.Module])
# what a checkpoint may name without being trusted
NETWORKS: dict[str, type[nn.Module]] = {}


def register(network: Network) -> Network:
    """Make a network of this package known under its name, on the command line and in checkpoints."""
    NETWORKS[network.__name__] = network
    return network


class SplitNetwork(nn.Module):
    """A network that computes ``head(dropout(trunk(images)))``.

    Args:
        trunk: images ``(B, C, H, W)`` -> features, any shape that starts with ``B``.
        dropout: the network's one source of randomness; ``nn.Identity`` makes it deterministic.
        head: features -> logits ``(B, K)``; its last module is the classifying layer.

    Attributes:
        blocks: names of those children of the trunk, an ``nn.Sequential``, whose activations fitted scores
            look at: what ends a block of layers. None by default.
        styled: name of the child of the trunk that gives what the last layer sees, and behind that the style
            of an image; None by default.
        style: how many of its values are the style.
    """

    blocks: tuple[str, ...] = ()
    styled: str | None = None
    style: int = 0

    def __init__(self, trunk: nn.Module, dropout: nn.Module, head: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = dropout
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` -> logits ``(B, K)``."""
        return cast(Tensor, self.head(self.dropout(self.trunk(images))))

    @property
    def last(self) -> int | None:
        """Position of the last ``nn.Linear`` in the head, the classifying layer; None without any."""
        found = [index for index, module in enumerate(self.head) if isinstance(module, nn.Linear)]
        return found[-1] if found else None


@register
class BaselineCNN(SplitNetwork):
    """The study's deterministic network: two convolutions and two linear layers, no dropout.

    With the defaults: ``(B, 1, 28, 28)`` -> conv 5x5, pool, ReLU ``(B, 16, 12, 12)`` -> conv 5x5, pool, ReLU
    ``(B, 32, 4, 4)`` -> linear, ReLU ``(B, 120)`` -> linear ``(B, 10)``; 76,018 parameters.

    Args:
        num_classes: ``K``, the number of known classes, at least 2.
        in_channels: ``C``, 1 for grey images, 3 for colour.
        image_size: ``H`` and ``W``, which are equal.
        channels: output channels of each convolution; each is followed by a 2x2 max pooling and a ReLU.
        hidden: width of the linear layer before the last.
        kernel_size: of every convolution, without padding.

    Raises:
        UserError: if a value is out of range, or the image too small for that many convolutions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        channels: Sequence[int] = (16, 32),
        hidden: int = 120,
        kernel_size: int = 5,
    ) -> None:
        _check(num_classes, in_channels, image_size, channels)
        _at_least("hidden", hidden, 1)
        _at_least("kernel_size", kernel_size, 1)
        layers: list[nn.Module] = []
        size, width = image_size, in_channels
        for out_channels in channels:
            # the study's ReLU comes before the pooling: the same numbers, from four times the work
            layers += [nn.Conv2d(width, out_channels, kernel_size), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
            size, width = (size - kernel_size + 1) // 2, out_channels
            if size < 1:
                raise UserError(
                    f"image_size={image_size} is too small for {len(channels)} convolutions "
                    f"with kernel_size={kernel_size}; use larger images, a smaller kernel or fewer channels."
                )
        super().__init__(
            trunk=nn.Sequential(*layers),
            dropout=nn.Identity(),
            head=nn.Sequential(
                nn.Flatten(),
                nn.Linear(width * size * size, hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, num_classes),
            ),
        )
        self.blocks = tuple(str(3 * block + 2) for block in range(len(channels)))
        # these small convolutions run about twice as fast this way; nothing outside can tell the difference
        self.to(memory_format=torch.channels_last)


@register
class MCDropoutCNN(BaselineCNN):
    """The study's MC-dropout network: `BaselineCNN` with whole channels dropped before the head.

    The same parameters under the same names as `BaselineCNN`, so either loads the other's weights.

    The study drops channels between the last ReLU and its pooling. Here the pooling comes first, which gives
    the same numbers: a channel is multiplied by 0 or by a positive constant, and the maximum of a window
    commutes with both that and the ReLU. The pooling thus belongs to the trunk, which runs once.

    Args:
        num_classes: ``K``, the number of known classes, at least 2.
        in_channels: ``C``, 1 for grey images, 3 for colour.
        image_size: ``H`` and ``W``, which are equal.
        channels: output channels of each convolution; each is followed by a 2x2 max pooling and a ReLU.
        hidden: width of the linear layer before the last.
        kernel_size: of every convolution, without padding.
        dropout: probability, in [0, 1), that a channel is dropped.

    Raises:
        UserError: if a value is out of range, or the image too small for that many convolutions.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        channels: Sequence[int] = (16, 32),
        hidden: int = 120,
        kernel_size: int = 5,
        dropout: float = 0.5,
    ) -> None:
        check_dropout(dropout)
        super().__init__(num_classes, in_channels, image_size, channels, hidden, kernel_size)
        self.dropout = nn.Dropout2d(dropout)


def _at_least(name: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise UserError(f"{name} must be at least {minimum}, got {value}.")


def _check(num_classes: int, in_channels: int, image_size: int, channels: Sequence[int] = (1,)) -> None:
    _at_least("num_classes", num_classes, 2)
    _at_least("in_channels", in_channels, 1)
    _at_least("image_size", image_size, 1)
    _at_least("the length of channels", len(channels), 1)
    for width in channels:
        _at_least("each of channels", width, 1)


def check_dropout(probability: float) -> None:
    """Refuse what a dropout before the last layer cannot have.

    Raises:
        UserError: if it lies outside of [0, 1).
    """
    if not 0 <= probability < 1:
        raise UserError(f"dropout must lie in [0, 1), got {probability}.")


class AveragedNetwork(SplitNetwork):
    """Convolutions, the mean of each channel, one dropout, and a linear layer.

    Args:
        layers: images ``(B, C, H, W)`` -> maps ``(B, D, h, w)``.
        last: ``D`` features -> logits.
        dropout: probability that a feature is dropped before it.
        blocks: see `SplitNetwork`; the last one's mean is the penultimate layer.
    """

    def __init__(
        self, layers: Sequence[nn.Module], last: nn.Linear, dropout: float, blocks: Sequence[str]
    ) -> None:
        check_dropout(dropout)
        trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(trunk, nn.Dropout(dropout), nn.Sequential(last))
        self.blocks = tuple(blocks)
        self.to(memory_format=torch.channels_last)


@register
class ConvNet(AveragedNetwork):
    """Pairs of 3x3 convolutions with batch norm, average pooling and one dropout: for pictures of any kind.

    With the defaults: ``(B, 3, 32, 32)`` -> two convolutions, pool ``(B, 32, 16, 16)`` -> two, pool
    ``(B, 64, 8, 8)`` -> two convolutions ``(B, 128, 8, 8)`` -> mean ``(B, 128)`` -> dropout -> linear
    ``(B, 10)``; 288,746 parameters. Pictures of more than 40
    pixels a side are halved by strided convolutions first, until they are smaller.

    Args:
        num_classes: ``K``, the number of known classes, at least 2.
        in_channels: ``C``, 1 for grey images, 3 for colour.
        image_size: ``H`` and ``W``, which are equal.
        channels: output channels of each pair of convolutions.
        dropout: probability, in [0, 1), that a feature is dropped before the last layer.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.3,
    ) -> None:
        _check(num_classes, in_channels, image_size, channels)
        layers, size, width = _halved(image_size, in_channels, channels[0])
        ends: list[str] = []
        for stage, out_channels in enumerate(channels):
            if stage and size >= 8:  # smaller maps have nothing left to pool
                layers.append(nn.MaxPool2d(2))
                size //= 2
            layers += [*_convolution(width, out_channels), *_convolution(out_channels, out_channels)]
            width = out_channels
            ends.append(str(len(layers) - 1))
        super().__init__(layers, nn.Linear(width, num_classes), dropout, ends[:-1])


_UNHALVED = 40  # pixels a side that the convolutions see as they are


def _convolution(
    in_channels: int, out_channels: int, stride: int = 1, *, pool: bool = False, slope: float = 0.0
) -> list[nn.Module]:
    """A 3x3 convolution, 2x2 max pooling if asked for, batch norm, and a ReLU with a slope below 0."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    activation = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)
    return [
        convolution,
        *([nn.MaxPool2d(2)] if pool else []),
        nn.BatchNorm2d(out_channels),
        activation,
    ]


def _halved(size: int, in_channels: int, out_channels: int) -> tuple[list[nn.Module], int, int]:
    """Strided convolutions that halve large pictures, and the pixels a side and channels that they leave."""
    layers: list[nn.Module] = []
    width = in_channels
    while size > _UNHALVED:
        layers += _convolution(width, out_channels, stride=2)
        size, width = -(-size // 2), out_channels
    return layers, size, width


class _Residual(nn.Sequential):
    """What its layers add to their input."""

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` -> the same shape."""
        return images + cast(Tensor, super().forward(images))  # type: ignore[no-untyped-call]


@register
class ResNet9(AveragedNetwork):
    """Nine 3x3 convolutions with residual pairs, for small pictures on a CPU.

    With the defaults: ``(B, 3, 32, 32)`` -> convolution, pool, residual pair ``(B, 64, 16, 16)`` ->
    convolution, pool, residual pair ``(B, 128, 8, 8)`` -> the same ``(B, 256, 4, 4)`` -> mean ``(B, 256)`` ->
    dropout -> linear ``(B, 10)``; 1,923,914 parameters. After Page, How to Train Your ResNet, 2018, whose
    network is wider, pools later and has residual pairs in the first and last stage alone: here each map is
    halved before it is normalised, which a CPU does in a third of the time. Pictures of more than 40 pixels
    a side are halved by strided convolutions first, until they are smaller.

    Args:
        num_classes: ``K``, the number of known classes, at least 2.
        in_channels: ``C``, 1 for grey images, 3 for colour.
        image_size: ``H`` and ``W``, which are equal.
        channels: output channels of each stage, of three convolutions each.
        dropout: probability, in [0, 1), that a feature is dropped before the last layer.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int = 32,
        channels: Sequence[int] = (64, 128, 256),
        dropout: float = 0.3,
    ) -> None:
        _check(num_classes, in_channels, image_size, channels)
        layers, size, width = _halved(image_size, in_channels, channels[0])
        ends: list[str] = []
        for out_channels in channels:
            pool = size >= 8  # smaller maps have nothing left to pool
            layers += _convolution(width, out_channels, pool=pool)
            size = size // 2 if pool else size
            pair = [*_convolution(out_channels, out_channels), *_convolution(out_channels, out_channels)]
            layers.append(_Residual(*pair))
            width = out_channels
            ends.append(str(len(layers) - 1))
        super().__init__(layers, nn.Linear(width, num_classes), dropout, ends[:-1])


@register
class ResNet18(AveragedNetwork):
    """ResNet-18 as it is trained on CIFAR: its first convolution is 3x3 and halves nothing.

    He et al., Deep Residual Learning for Image Recognition, CVPR 2016, whose stem for ImageNet (7x7 with
    stride 2, then pooling) would leave 8x8 of 32x32 pixels; torchvision's own, with that stem, is the network
    resnet18. With the defaults: ``(B, 3, 32, 32)`` -> convolution ``(B, 64, 32, 32)`` -> four stages of two
    residual blocks, of 64, 128, 256 and 512 channels, the last three halved first -> mean ``(B, 512)`` ->
    dropout -> linear ``(B, 10)``; 11,173,962 parameters.

    Args:
        num_classes: ``K``, the number of known classes, at least 2.
        in_channels: ``C``, 1 for grey images, 3 for colour.
        image_size: ``H`` and ``W``, which are equal.
        dropout: probability, in [0, 1), that a feature is dropped before the last layer.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, dropout: float = 0.3
    ) -> None:
        from torchvision.models import resnet18

        _check(num_classes, in_channels, image_size)
        whole = resnet18(num_classes=num_classes)
        stages = [whole.layer1, whole.layer2, whole.layer3, whole.layer4]
        stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as the others are
        super().__init__([stem, whole.bn1, whole.relu, *stages], whole.fc, dropout, ("3", "4", "5"))


@register
class VGG32(AveragedNetwork):
    """ARPL's small CNN, on which most published results of small pictures are: nine 3x3 convolutions.

    Chen et al., Adversarial Reciprocal Points Learning, TPAMI 2021 (``classifier32`` of the authors' code),
    called VGG32 by Vaze et al., ICLR 2022. With the defaults: ``(B, 3, 32, 32)`` -> three convolutions
    ``(B, 128, 16, 16)`` -> three ``(B, 128, 8, 8)`` -> three ``(B, 128, 4, 4)``, the third of each with
    stride 2, each with batch norm and a ReLU of slope 0.2 below 0 -> mean ``(B, 128)`` -> dropout -> linear
    without bias ``(B, 10)``; 1,000,384 parameters. Where theirs drops whole channels with probability 0.2,
    of the picture and of the maps after the third and sixth convolution, this one drops features before the
    last layer, so that samples of MC dropout share all that comes before.

    Args:
        num_classes: ``K``, the number of known classes, at least 2.
        in_channels: ``C``, 1 for grey images, 3 for colour.
        image_size: ``H`` and ``W``, which are equal.
        dropout: probability, in [0, 1), that a feature is dropped before the last layer.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, dropout: float = 0.3
    ) -> None:
        _check(num_classes, in_channels, image_size)
        layers: list[nn.Module] = []
        width = in_channels
        for number, out_channels in enumerate((64, 64, *[128] * 7), 1):
            stride = 2 if number % 3 == 0 else 1
            layers += _convolution(width, out_channels, stride, slope=0.2)
            width = out_channels
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.05)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
        super().__init__(layers, nn.Linear(width, num_classes, bias=False), dropout, ("8", "17"))
