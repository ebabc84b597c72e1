"""The networks: sizes, names of weights, and the numbers of the study's order of layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN

NETWORKS = [BaselineCNN, MCDropoutCNN]


class StudyCNN(nn.Module):
    """The study's network as it was written down: ReLU before pooling, channel dropout in between."""

    def __init__(self, network):
        super().__init__()
        self.conv1, self.conv2 = network.trunk[0], network.trunk[3]
        self.linear1, self.linear2 = network.head[1], network.head[3]

    def forward(self, images, mask=1.0):
        hidden = F.max_pool2d(F.relu(self.conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv2(hidden)) * mask, 2)
        return self.linear2(F.relu(self.linear1(hidden.flatten(1))))


@pytest.mark.parametrize("network_class", NETWORKS)
def test_the_studys_size(network_class):
    network = network_class()
    assert sum(p.numel() for p in network.parameters()) == 76_018
    assert network(torch.rand(3, 1, 28, 28)).shape == (3, 10)
    assert network(torch.rand(0, 1, 28, 28)).shape == (0, 10)


def test_both_load_each_others_weights():
    baseline, dropout = BaselineCNN(), MCDropoutCNN().eval()
    assert list(baseline.state_dict()) == list(dropout.state_dict())
    dropout.load_state_dict(baseline.state_dict())
    images = torch.rand(4, 1, 28, 28)
    assert torch.equal(baseline(images), dropout(images))


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize(
    ("num_classes", "in_channels", "image_size", "channels"), [(2, 3, 32, (8, 8, 8)), (37, 1, 17, (4,))]
)
def test_other_sizes(network_class, num_classes, in_channels, image_size, channels):
    network = network_class(num_classes, in_channels, image_size, channels, hidden=7, kernel_size=3)
    images = torch.rand(5, in_channels, image_size, image_size)
    assert network(images).shape == (5, num_classes)
    assert network.head[-1].in_features == 7


def test_numbers_and_gradients_are_those_of_the_studys_order_of_layers():
    network, images = BaselineCNN(), torch.randn(9, 1, 28, 28)
    ours, theirs = network(images), StudyCNN(network)(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    parameters = list(network.parameters())
    pairs = zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(theirs.square().sum(), parameters),
        strict=True,
    )
    for gradient, expected in pairs:
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9])
def test_channel_dropout_commutes_with_pooling(p):
    network, images = MCDropoutCNN(dropout=p), torch.randn(9, 1, 28, 28)
    mask = (torch.rand(9, 32, 1, 1) >= p) / (1 - p)
    ours = network.head(network.trunk(images) * mask)
    torch.testing.assert_close(ours, StudyCNN(network)(images, mask), rtol=0, atol=1e-5)


def test_dropout_follows_the_mode():
    network, images = MCDropoutCNN(), torch.rand(2, 1, 28, 28)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize("network_class", NETWORKS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", 1),
        ("in_channels", 0),
        ("image_size", 15),
        ("image_size", 0),
        ("channels", ()),
        ("channels", (16, 0)),
        ("hidden", 0),
        ("kernel_size", 0),
    ],
)
def test_bad_values_are_named(network_class, name, value):
    with pytest.raises(UserError, match=name):
        network_class(**{name: value})


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_bad_dropout_is_named(p):
    with pytest.raises(UserError, match=f"dropout.*{p}"):
        MCDropoutCNN(dropout=p)
