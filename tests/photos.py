"""Photographs for tests, made up, and a backbone small enough for them, in the layout of its own files."""

from functools import partial
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import _cfg, _create_effnet

SIDE = 64  # pixels
BACKBONE = "timm:few_layers"  # of this process alone
PUBLISHED = "timm:test_efficientnet"  # timm's own smallest, 160 pixels
CLASSES = {"brick": (180, 60, 40), "grass": (50, 160, 60), "sky": (70, 120, 220)}
OTHER = {"night": (20, 20, 40)}

default_cfgs = timm.models.generate_default_cfgs(
    {"few_layers.untrained": _cfg(input_size=(3, SIDE, SIDE), pool_size=(8, 8), crop_pct=0.95)}
)


@timm.models.register_model
def few_layers(pretrained: bool = False, **options: object) -> torch.nn.Module:
    """An EfficientNet of timm's with two blocks, one of each kind: half of the operations of its smallest."""
    blocks = decode_arch_def([["er_r1_k3_s2_e4_c24"], ["ir_r1_k3_s2_e4_c48_se0.25"]])
    rounding = partial(round_channels, round_limit=0.0)
    made = {"block_args": blocks, "num_features": 256, "stem_size": 24, "round_chs_fn": rounding}
    return _create_effnet("few_layers", pretrained, **made, act_layer=torch.nn.SiLU, **options)


class OneConvolution(torch.nn.Sequential):
    """A classifier by its class path, where training a backbone takes long: in bfloat16 on most CPUs."""

    def __init__(self) -> None:
        convolution = torch.nn.Conv2d(3, 8, 5, 4)
        super().__init__(
            convolution, torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 7)
        )


def write_photos(folder: Path, classes=CLASSES, count=20, size=(72, 80), seed=0, quality=None) -> Path:
    """A folder of coloured textures per class, which a random backbone tells apart."""
    rng = np.random.default_rng(seed)
    for name, colour in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            noise = rng.normal(0, 25, (size[1], size[0], 3)) + rng.normal(0, 8, 3)
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def write_weights(file: Path, name: str = BACKBONE, seed: int = 0) -> Path:
    """Weights of the small backbone, drawn at random, as timm saves them."""
    torch.manual_seed(seed)
    network = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=7)
    torch.save(network.state_dict(), file)
    return file


def write_other(checkpoint: Path, file: Path) -> Path:
    """A checkpoint of a network that answers almost as another's."""
    from osr_lightning.recogniser import checkpoint as checkpoints

    kept = checkpoints.read(checkpoint)
    (last,) = [name for name in kept["state_dict"] if name.endswith("head.0.weight")]
    kept["state_dict"][last] = kept["state_dict"][last] * 1.001
    checkpoints.write(kept, file)
    return file


def write_classifier(file: Path, pictures: Path, name: str = BACKBONE) -> Path:
    """Weights of the small network as a classifier of a folder's classes, trained on its pictures."""
    from osr_lightning.images.pixels import to_input, to_pixels
    from osr_lightning.images.tensors import standardise
    from osr_lightning.models.backbones import pixel_format
    from osr_lightning.training.head import solve

    torch.manual_seed(0)
    wanted = pixel_format(name)
    files = sorted(pictures.glob("*/*.png"))
    classes = sorted({one.parent.name for one in files})
    network = timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=len(classes)).eval()
    pixels = np.stack([to_input(to_pixels(str(one), wanted.resize), wanted) for one in files])
    with torch.no_grad():
        images = standardise(torch.from_numpy(pixels), wanted.mean, wanted.std)
        features = network.forward_head(network.forward_features(images), pre_logits=True)
    scale, last = float(features.std()), network.get_classifier()
    torch.nn.init.zeros_(last.weight)
    solve(
        last.weight,
        last.bias,
        features / scale,
        torch.tensor([classes.index(f.parent.name) for f in files]),
        0.01,
    )
    last.weight.data /= scale
    torch.save(network.state_dict(), file)
    return file


def backbone_options(weights: Path) -> list[str]:
    """Words of the command line that name the small backbone."""
    return [
        "--model.network=Backbone",
        f"--model.network.name={BACKBONE}",
        f"--model.network.weights={weights}",
    ]
