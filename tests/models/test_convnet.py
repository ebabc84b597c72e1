"""The network for pictures of any kind: its parameters, the sizes it takes, and its three parts."""

import copy

import pytest
import torch
from torch import nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.models.networks import NETWORKS, ConvNet
from osr_lightning.models.split import split
from osr_lightning.recogniser.checkpoint import build, load, save


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def by_hand(num_classes, in_channels, channels=(32, 64, 128), halvings=0):
    """Weights of 3x3 convolutions without bias, two of each batch norm per channel, and the last layer."""
    total, width = 0, in_channels
    for out in (*[channels[0]] * halvings, *(c for c in channels for _ in range(2))):
        total += 9 * width * out + 2 * out
        width = out
    return total + width * num_classes + num_classes


# size -------------------------------------------------------------------------------------------------


def test_the_number_of_parameters_is_the_documented_one():
    assert count(ConvNet(4, 3, 32)) == 287_972 == by_hand(4, 3)
    assert count(ConvNet()) == 288_746
    assert "288,746" in ConvNet.__doc__


@pytest.mark.parametrize(
    ("size", "halvings"), [(1, 0), (28, 0), (40, 0), (41, 1), (64, 1), (80, 1), (81, 2), (160, 2), (224, 3)]
)
def test_each_halving_of_a_large_picture_is_one_more_convolution(size, halvings):
    assert count(ConvNet(5, 3, size)) == by_hand(5, 3, halvings=halvings)


@pytest.mark.parametrize("channels", [(8,), (4, 6), (4, 6, 8, 10, 12)])
def test_channels_are_the_pairs_of_convolutions(channels):
    network = ConvNet(3, 1, 20, channels=channels)
    assert count(network) == by_hand(3, 1, channels)
    assert network(torch.zeros(2, 1, 20, 20)).shape == (2, 3)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("size", [*range(1, 18), 24, 28, 31, 32, 33, 40, 41, 64, 65, 96, 127, 224])
def test_every_size_gives_finite_logits(size, in_channels):
    # small channels: the sizes are what is looked at
    network = ConvNet(3, in_channels, size, channels=(4, 6, 8)).eval()
    logits = network(torch.randn(2, in_channels, size, size))
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [8, 32, 64, 224])
def test_every_parameter_takes_part(size):
    torch.manual_seed(0)
    network = ConvNet(3, 3, size)
    network(torch.randn(4, 3, size, size)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_docs_shapes_are_those_of_the_trunk():
    network, shapes = ConvNet(10, 3, 32), []
    for module in network.trunk:
        if isinstance(module, (nn.MaxPool2d, nn.AdaptiveAvgPool2d)):
            module.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    assert network.trunk(torch.zeros(2, 3, 32, 32)).shape == (2, 128)
    assert shapes == [(32, 16, 16), (64, 8, 8), (128, 1, 1)]


# refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"channels": ()}, "the length of channels must be at least 1, got 0"),
        ({"channels": (32, 0)}, "each of channels must be at least 1, got 0"),
        ({"channels": (-1, 8)}, "each of channels must be at least 1, got -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0.1"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan"),
    ],
)
def test_a_value_out_of_range_is_named(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        ConvNet(**arguments)


@pytest.mark.parametrize("first", [0, -1])
def test_a_value_out_of_range_is_named_for_large_pictures_too(first):
    with pytest.raises(UserError, match="each of channels must be at least 1"):
        ConvNet(image_size=64, channels=(first, 8))


# parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 32, 64])
def test_it_is_split_already(size):
    network = ConvNet(4, 3, size)
    assert split(network, (3, size, size), 4) is network
    assert network.last == 0
    assert network.head[0].in_features == 128


def test_without_dropout_its_parts_are_the_whole():
    network = ConvNet(4, 3, 16).eval()
    images = torch.randn(3, 3, 16, 16)
    features = network.trunk(images)
    assert torch.allclose(
        network(images), features @ network.head[0].weight.T + network.head[0].bias, atol=1e-6
    )


@pytest.mark.parametrize("size", [12, 64])
def test_the_samples_are_those_of_its_masks_one_by_one(size):
    torch.manual_seed(0)
    network = ConvNet(4, 3, size)
    network(torch.randn(8, 3, size, size))  # gives batch norm statistics of its own
    reference = copy.deepcopy(network).eval()
    sampler = MCDropout(network, (3, size, size), num_samples=6, mask_seed=3).eval()
    images = torch.randn(5, 3, size, size)
    with torch.no_grad():
        found = sampler(images).logits
        features = reference.trunk(images)
        masks = sampler.masks.flatten(1)
        expected = torch.stack([reference.head(features * mask) for mask in masks])
    assert found.shape == (6, 5, 4)
    assert torch.allclose(found, expected, atol=1e-5)
    assert sorted(set(masks.flatten().tolist())) == pytest.approx([0, 1 / 0.7])
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("masks", ["shared", "independent"])
def test_the_methods_that_it_can_take_give_the_same_samples(masks):
    torch.manual_seed(0)
    network, images, found = ConvNet(4, 3, 12), torch.randn(5, 3, 12, 12), {}
    for method in ("trunk", "loop"):
        sampler = MCDropout(
            copy.deepcopy(network), (3, 12, 12), num_samples=6, masks=masks, method=method
        ).eval()
        with torch.no_grad():
            found[method] = sampler(images).logits
    # the loop runs the whole network for every sample, the other its head alone
    assert torch.allclose(found["trunk"], found["loop"], atol=1e-5)
    with pytest.raises(UserError, match="fold needs"):  # a linear layer before the last one
        MCDropout(network, (3, 12, 12), masks=masks, method="fold")


def test_the_trunk_runs_once_for_all_samples():
    network = ConvNet(4, 3, 16)
    calls = []
    network.trunk.register_forward_hook(lambda *_: calls.append(1))
    sampler = MCDropout(network, (3, 16, 16), num_samples=10).eval()
    calls.clear()
    sampler(torch.randn(5, 3, 16, 16))
    assert calls == [1]


def test_a_checkpoint_of_it_needs_no_trust(tmp_path):
    spec = DataSpec(tuple("abcd"), 3, 20, (0.5,) * 3, (0.25,) * 3)
    made = build({"sampler": "mc_dropout", "network": "ConvNet", "score": "msp", "fixed": 0.5}, spec).eval()
    assert "ConvNet" in NETWORKS
    save(made, tmp_path / "x.ckpt")
    pixels = torch.randint(256, (3, 3, 20, 20), dtype=torch.uint8)
    found = load(tmp_path / "x.ckpt")
    assert torch.equal(found(pixels).score, made(pixels).score)
