"""Features and logits come from one pass without dropout, and leave the network as it was."""

import pytest
import torch
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.models.features import features_and_logits, last_linear
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


class Branches(nn.Module):
    """Not a SplitNetwork: dropouts of several kinds, and one that acts twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.drop = nn.Dropout(0.5)
        self.alpha = nn.AlphaDropout(0.5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.drop(self.norm(self.alpha(self.first(self.drop(x))))))


def modes(network):
    return [module.training for module in network.modules()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", [BaselineCNN, MCDropoutCNN])
@pytest.mark.parametrize("training", [False, True])
def test_the_classifying_layer_of_the_studys_networks(kind, training, device):
    network = kind().to(device).train(training)
    images = torch.randn(7, 1, 28, 28, device=device)
    before = modes(network)
    features, logits = features_and_logits(network, images)
    assert modes(network) == before
    assert features.shape == (7, 120)
    assert logits.shape == (7, 10)
    assert features.device == logits.device == images.device
    network.eval()
    torch.testing.assert_close(features, network.penultimate(images))
    torch.testing.assert_close(logits, network(images))
    torch.testing.assert_close(last_linear(network)(features), logits)


def test_any_network_and_only_its_dropouts_are_silent():
    network = Branches().train()
    network.drop.eval()  # a mode of its own, to be kept
    before = modes(network)
    images = torch.randn(8, 6)
    first, again = (features_and_logits(network, images) for _ in range(2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert modes(network) == before
    assert network.norm.num_batches_tracked == 2  # training, as it was found
    assert not network.last._forward_hooks


def test_the_network_is_restored_when_it_fails():
    network = MCDropoutCNN().train()
    with pytest.raises(RuntimeError):
        features_and_logits(network, torch.randn(2, 3, 28, 28))
    assert network.dropout.training
    assert not last_linear(network)._forward_hooks


def test_an_empty_batch():
    features, logits = features_and_logits(MCDropoutCNN(), torch.empty(0, 1, 28, 28))
    assert features.shape == (0, 120)
    assert logits.shape == (0, 10)


def test_a_network_without_a_linear_layer():
    with pytest.raises(UserError, match=r"no nn\.Linear"):
        last_linear(nn.Conv2d(1, 10, 28))
    with pytest.raises(UserError, match=r"no nn\.Linear"):
        features_and_logits(nn.Conv2d(1, 10, 28), torch.randn(2, 1, 28, 28))


def test_a_last_layer_that_does_not_see_one_vector_per_image():
    with pytest.raises(UserError, match=r"\(2, 4, 6\)"):
        features_and_logits(nn.Linear(6, 3), torch.randn(2, 4, 6))
    twice = nn.Linear(6, 6)
    with pytest.raises(UserError, match="once per pass"):
        features_and_logits(nn.Sequential(twice, nn.ReLU(), twice), torch.randn(2, 6))
