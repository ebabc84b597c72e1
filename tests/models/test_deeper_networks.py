"""The deeper networks for small pictures: parameters, layers by hand, sizes, parts, samples, checkpoints."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.models.networks import NETWORKS, VGG32, ResNet9, ResNet18
from osr_lightning.models.split import split
from osr_lightning.recogniser.checkpoint import build, load, save

pytestmark = pytest.mark.usefixtures("seeded")

KINDS = {"ResNet9": ResNet9, "ResNet18": ResNet18, "VGG32": VGG32}
# the same of fewer weights where there is such an option
SMALL = {**KINDS, "ResNet9": partial(ResNet9, channels=(4, 6, 8))}


def lived_in(network: nn.Module, *shape: int) -> nn.Module:
    """The network in eval mode, its batch norms with statistics, scales and shifts of their own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def norm(x, weights, name):
    parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return F.batch_norm(x, *parts)


# layers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # 3x3 weights, two of each batch norm per channel, the last layer
        (
            "ResNet9",
            sum(
                9 * a * b + 2 * b for a, b in [(3, 64), (64, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
            )
            + sum(9 * a * b + 2 * b for a, b in [(128, 256), (256, 256), (256, 256)])
            + 257 * 10,
        ),
        ("ResNet18", 11_173_962),  # that of everybody's for CIFAR-10
        (
            "VGG32",
            sum(9 * a * b + 2 * b for a, b in [(3, 64), (64, 64), (64, 128), *[(128, 128)] * 6]) + 128 * 10,
        ),
    ],
)
def test_the_number_of_parameters_is_the_documented_one(name, count):
    network = KINDS[name]()
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert f"{count:,} parameters" in network.__doc__


@torch.no_grad()
def test_resnet9_computes_what_its_docstring_says():
    network = lived_in(ResNet9(5, 3, 32, channels=(4, 6, 8)))
    images, weights = torch.randn(3, 3, 32, 32), network.trunk.state_dict()
    x = images
    for first in (0, 5, 10):  # convolution, pool, norm, ReLU, pair
        x = F.max_pool2d(F.conv2d(x, weights[f"{first}.weight"], padding=1), 2)
        x = norm(x, weights, str(first + 2)).relu()
        pair = x
        for layer in (0, 3):
            pair = F.conv2d(pair, weights[f"{first + 4}.{layer}.weight"], padding=1)
            pair = norm(pair, weights, f"{first + 4}.{layer + 1}").relu()
        x = x + pair
    assert x.shape == (3, 8, 4, 4)
    features = x.mean((2, 3))
    torch.testing.assert_close(network.trunk(images), features, rtol=1e-4, atol=1e-5)
    expected = features @ network.head[0].weight.T + network.head[0].bias
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_resnet18_is_torchvisions_with_the_stem_of_cifar():
    network, images = lived_in(ResNet18(5, 3, 32)), torch.randn(2, 3, 32, 32)
    theirs = torchvision.models.resnet18(num_classes=5)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    stem = {"0": "conv1", "1": "bn1", "3": "layer1", "4": "layer2", "5": "layer3", "6": "layer4"}
    renamed = {}
    for name, value in network.state_dict().items():
        part, _, rest = name.partition(".")
        at, _, rest = rest.partition(".") if part == "trunk" else ("fc", "", rest.removeprefix("0."))
        renamed[f"{stem.get(at, at)}.{rest}"] = value
    theirs.load_state_dict(renamed)
    torch.testing.assert_close(network(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)
    # nothing is halved before the second stage
    assert network.trunk[:4](images).shape == (2, 64, 32, 32)


@torch.no_grad()
def test_vgg32_has_the_layers_of_arpls_code():
    network = lived_in(VGG32(5, 3, 32))
    images, weights = torch.randn(2, 3, 32, 32), network.trunk.state_dict()
    x = images
    for number in range(9):
        x = F.conv2d(x, weights[f"{3 * number}.weight"], stride=2 if number % 3 == 2 else 1, padding=1)
        x = F.leaky_relu(norm(x, weights, str(3 * number + 1)), 0.2)
    assert x.shape == (2, 128, 4, 4)
    expected = x.mean((2, 3)) @ network.head[0].weight.T
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_vgg32_begins_with_weights_as_arpls_code_does():
    network = VGG32()
    for module in network.trunk[3:]:  # the first convolution has few weights
        if isinstance(module, nn.Conv2d):
            assert float(module.weight.detach().mean()) == pytest.approx(0, abs=1e-3)
            assert float(module.weight.detach().std()) == pytest.approx(0.05, rel=0.02)
    scales = torch.cat([m.weight.detach() for m in network.modules() if isinstance(m, nn.BatchNorm2d)])
    assert float(scales.mean()) == pytest.approx(1, abs=5 * 0.02 / len(scales) ** 0.5)
    assert float(scales.std()) == pytest.approx(0.02, rel=0.1)


# sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 15, 28, 41, 65])
@torch.no_grad()
def test_every_size_gives_finite_logits(name, size, in_channels):
    network = SMALL[name](num_classes=3, in_channels=in_channels, image_size=size).eval()
    logits = network(torch.randn(2, in_channels, size, size))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [12, 48])
def test_every_parameter_takes_part(name, size):
    network = SMALL[name](num_classes=3, image_size=size)
    network(torch.randn(4, 3, size, size)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan"),
    ],
)
def test_a_value_out_of_range_is_named(name, arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        KINDS[name](**arguments)


@pytest.mark.parametrize("channels", [(), (32, 0), (-1, 8)])
def test_channels_out_of_range_are_named(channels):
    with pytest.raises(UserError, match="channels must be at least 1"):
        ResNet9(image_size=64, channels=channels)


# parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_it_is_split_already_and_its_blocks_are_layers_of_its_trunk(name):
    network = SMALL[name](num_classes=4)
    assert split(network, (3, 32, 32), 4) is network
    assert network.last == 0
    sizes = []
    for block in network.blocks:
        network.trunk[int(block)].register_forward_hook(lambda _, __, out: sizes.append(out.shape[-1]))
    network(torch.zeros(2, 3, 32, 32))
    assert sizes == {"ResNet9": [16, 8], "ResNet18": [32, 16, 8], "VGG32": [16, 8]}[name]


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_samples_are_those_of_its_masks_one_by_one(name):
    network = lived_in(SMALL[name](num_classes=4, image_size=12))
    reference = copy.deepcopy(network)
    sampler = MCDropout(network, (3, 12, 12), num_samples=5, mask_seed=3).eval()
    images, calls = torch.randn(3, 3, 12, 12), []
    network.trunk.register_forward_hook(lambda *_: calls.append(1))
    found = sampler(images).logits
    assert calls == [1]  # once for all samples
    features = reference.trunk(images)
    expected = torch.stack([reference.head(features * mask) for mask in sampler.masks.flatten(1)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_of_it_needs_no_trust(name, tmp_path):
    spec = DataSpec(tuple("abcd"), 3, 12, (0.5,) * 3, (0.25,) * 3)
    made = build({"sampler": "mc_dropout", "network": name, "score": "msp", "fixed": 0.5}, spec).eval()
    assert name in NETWORKS
    save(made, tmp_path / "x.ckpt")
    pixels = torch.randint(256, (3, 3, 12, 12), dtype=torch.uint8)
    assert torch.equal(load(tmp_path / "x.ckpt")(pixels).score, made(pixels).score)
