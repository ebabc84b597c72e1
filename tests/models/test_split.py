"""A network that was split computes what it computed, and gives up its last linear layer where it has one."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN, SplitNetwork
from osr_lightning.models.sampling import Single
from osr_lightning.models.split import split

SHAPE = (1, 28, 28)


def images_of(count, shape=SHAPE, seed=1):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def passes(network, images):
    """A pass in each mode, both with the same random numbers."""
    found = []
    for training in (False, True):
        torch.manual_seed(0)
        found.append(copy.deepcopy(network).train(training)(images))
    return torch.stack(found).detach()


def weights(network):
    return sorted(id(parameter) for parameter in network.parameters())


# torchvision's ----------------------------------------------------------------------------------------


def vgg11():
    """Its own layers of 4,096 units would take half a gigabyte."""
    network = torchvision.models.vgg11(num_classes=6, init_weights=False)
    network.classifier[0], network.classifier[3] = nn.Linear(512 * 49, 16), nn.Linear(16, 32)
    network.classifier[6] = nn.Linear(32, 6)
    return network


TORCHVISION = {
    "resnet18": (lambda: torchvision.models.resnet18(weights=None, num_classes=6), 512),
    "vgg11": (vgg11, 32),
    "mobilenet_v3_small": (lambda: torchvision.models.mobilenet_v3_small(weights=None, num_classes=6), 1024),
}


@pytest.fixture(scope="module", params=TORCHVISION)
def known_network(request):
    build, width = TORCHVISION[request.param]
    torch.manual_seed(0)
    return build(), width


def test_torchvisions_networks_are_split_before_their_last_linear_layer(known_network):
    network, width = known_network
    images = images_of(3, (3, 32, 32))
    expected, owned = passes(network, images), weights(network)
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    found = split(copy.deepcopy(network), (3, 32, 32), 6)
    torch.testing.assert_close(passes(found, images), expected)
    assert list(map(type, found.head)) == [nn.Linear]
    assert found.head[0].in_features == width
    assert torch.equal(found.head[0].weight, last.weight)
    # in one place only, and none was lost
    assert len(weights(found)) == len(set(weights(found))) == len(owned)
    seen = []
    last_handle = last.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    logits = network.eval()(images)
    last_handle.remove()
    sampled = Single(found).eval()(images, ("penultimate", "logits"))
    torch.testing.assert_close(sampled.features["penultimate"], seen[0])
    torch.testing.assert_close(sampled.features["logits"], logits)
    torch.testing.assert_close(sampled.logits[0], logits)


def test_torchvisions_dropouts_deep_inside_are_sampled():
    torch.manual_seed(0)
    network = vgg11()
    sampler = MCDropout(split(network, (3, 32, 32), 6), (3, 32, 32), 4).eval()
    assert sampler.deep
    images = images_of(3, (3, 32, 32))
    sampled = sampler(images, ("penultimate",))
    assert len(sampled.logits[:, 0].unique(dim=0)) > 1
    torch.testing.assert_close(sampler(images[:1]).logits, sampled.logits[:, :1])
    assert sampled.features["penultimate"].shape == (3, 32)


# a Sequential, a network of the study's kind --------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
def test_a_sequential_is_split_at_its_dropout(kind):
    network = nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), kind(0.5), nn.Flatten(), nn.Linear(2304, 7), nn.ReLU(), nn.Linear(7, 3)
    )
    expected = passes(network, images_of(3))
    layers = list(network)
    found = split(network, SHAPE, 3)
    assert [*found.trunk] == layers[:2]
    assert found.dropout is layers[2]
    assert [*found.head] == layers[3:]
    assert torch.equal(passes(found, images_of(3)), expected)


def test_a_dropout_that_never_acts_is_no_place_to_split_at():
    network = nn.Sequential(
        nn.Flatten(), nn.Dropout(0.0), nn.Linear(784, 9), nn.Dropout(0.5), nn.Linear(9, 3)
    )
    dropout = network[3]
    assert split(network, SHAPE, 3).dropout is dropout


def test_a_split_network_stays_as_it_is():
    for network in (BaselineCNN(), MCDropoutCNN(dropout=0.2)):
        before = list(network.modules())
        assert split(network, SHAPE, 10) is network
        assert list(network.modules()) == before


class Halved(MCDropoutCNN):
    """Has the three parts, and does more than they do."""

    def forward(self, images):
        return super().forward(images) / 2


def test_a_forward_of_its_own_is_kept():
    network = Halved()
    expected = passes(network, images_of(3))
    found = split(network, SHAPE, 10)
    torch.testing.assert_close(passes(found, images_of(3)), expected)
    assert found.last is None


# others -----------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Ends in one of several ways."""

    def __init__(self, end):
        super().__init__()
        self.first, self.last = nn.Linear(784, 784), nn.Linear(784, 784)
        self.end = end

    def forward(self, images):
        hidden = self.last(self.first(images.flatten(1)).relu())
        return self.end(hidden)


ENDS = {
    "not linear": lambda hidden: hidden.log_softmax(1),
    "cut": lambda hidden: hidden[:, :5],
    "scaled": lambda hidden: 3 * hidden,
    "bounded": lambda hidden: hidden.clamp(-0.1, 0.1),
    "rectified": lambda hidden: hidden.relu(),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_does_more_after_its_last_linear_layer_is_not_split(end):
    network = Odd(ENDS[end])
    expected, owned = passes(network, images_of(3)), weights(network)
    found = split(network, SHAPE, expected.shape[-1])
    assert torch.equal(passes(found, images_of(3)), expected)
    assert found.trunk is network
    assert found.last is None
    assert weights(found) == owned


def test_a_network_that_does_not_end_in_a_linear_layer_can_be_sampled_but_has_no_features():
    network = nn.Sequential(nn.Conv2d(1, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = images_of(3)
    expected = network(images)
    sampler = Single(split(network, SHAPE, 4))
    torch.testing.assert_close(sampler(images).logits[0], expected)
    with pytest.raises(UserError, match=r"does not end in an nn\.Linear"):
        sampler(images, ("penultimate",))
    with pytest.raises(UserError, match=r"does not end in an nn\.Linear"):
        _ = sampler.last_layer


class Twice(nn.Module):
    """One layer that is passed twice; moved away, the first pass would be lost."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, images):
        return self.layer(self.layer(images.flatten(1)).relu())


def test_a_last_layer_with_several_uses_stays_where_it_is():
    network, images = Twice(), images_of(3, (1, 2, 3))
    expected = passes(network, images)
    found = split(network, (1, 2, 3), 6)
    assert torch.equal(passes(found, images), expected)
    assert found.last is None


class Curious(nn.Module):
    """Looks into its last layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(784, 3)

    def forward(self, images):
        return self.last(images.flatten(1).to(self.last.weight.dtype))


def test_a_network_that_looks_into_its_last_layer_stays_whole():
    network, images = Curious(), images_of(3)
    expected = network(images)
    found = split(network, SHAPE, 3)
    assert torch.equal(found(images), expected)
    assert found.trunk is network


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(784), nn.Linear(784, 3)

    def forward(self, images):
        return self.last(self.norm(images.flatten(1)))


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_leaves_no_trace(training):
    network = Normed().double().train(training)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    found = split(network, SHAPE, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.trunk.training == found.trunk.norm.training == training
    assert found.head[0].training == training
    after = {**found.trunk.state_dict(), **{f"last.{n}": v for n, v in found.head[0].state_dict().items()}}
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name


# refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [BaselineCNN, lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10))])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 32, 32)])
def test_images_of_other_channels_or_size_are_refused(build, shape):
    network = build()
    if shape == SHAPE:
        split(network, shape, 10)
        return
    name = type(network).__name__
    message = rf"{name} does not take images of {shape[0]} channels and {shape[1]} pixels .*in_channels"
    with pytest.raises(UserError, match=message):
        split(network, shape, 10)


@pytest.mark.parametrize("classes", [9, 11])
def test_another_number_of_classes_is_refused(classes):
    with pytest.raises(UserError, match=rf"BaselineCNN gives \(2, 10\) .* there are {classes} known classes"):
        split(BaselineCNN(), SHAPE, classes)


class Pair(nn.Module):
    def forward(self, images):
        return images.flatten(1), images


class PerPixel(nn.Module):
    def forward(self, images):
        return images.flatten(2)


@pytest.mark.parametrize(("network", "gives"), [(Pair(), "tuple"), (PerPixel(), r"\(2, 1, 784\)")])
def test_what_are_no_logits_is_refused(network, gives):
    with pytest.raises(UserError, match=f"gives {gives} for 2 images"):
        split(network, SHAPE, 784)


def test_a_refused_network_is_left_as_it_was():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    layers = list(network)
    with pytest.raises(UserError):
        split(network, SHAPE, 9)
    assert list(network) == layers
    assert isinstance(split(network, SHAPE, 10), SplitNetwork)
