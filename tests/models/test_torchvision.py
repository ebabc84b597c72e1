"""torchvision's classifiers by name, their weights, and dropout for networks that have none."""

import copy
import functools
import logging
import warnings

import pytest
import torch
from torch import nn
from torchvision import models

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.dropout import RATE, give_dropout
from osr_lightning.models.factory import build_network, find, network_recipe, saved_recipe
from osr_lightning.models.networks import BaselineCNN, ConvNet, MCDropoutCNN, SplitNetwork
from osr_lightning.models.split import split
from osr_lightning.models.torchvision_networks import Torchvision, classifier_names
from osr_lightning.recogniser.checkpoint import build, load, save

pytestmark = pytest.mark.usefixtures("seeded", "quickly_drawn")

FAMILIES = ["resnet18", "mobilenet_v3_small", "vgg11", "squeezenet1_1", "efficientnet_b0"]
LIGHT = [name for name in FAMILIES if name != "vgg11"]  # which has 129 million parameters
SMALL = "squeezenet1_1"  # the fewest parameters, for what any of them can show
SIZE = 64


def spec(channels=3, size=SIZE) -> DataSpec:
    return DataSpec(tuple("abcd"), channels, size, (0.5,) * channels, (0.25,) * channels)


@pytest.fixture(scope="module")
def original():
    """torchvision's own resnet18 with 1000 outputs, its batch norms not as they begin."""
    network = models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    return network.eval()


@pytest.fixture(scope="module")
def weights(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(original.state_dict(), path)
    return path


# by name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_by_name_takes_the_images_and_gives_logits_of_the_classes(name, channels):
    network = build_network(name, spec(channels)).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, channels, SIZE, SIZE))
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()
    (first, *_) = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == channels


@pytest.mark.parametrize("name", LIGHT)
def test_it_computes_what_torchvisions_own_does(name):
    mine = build_network(name, spec()).eval()
    own = models.get_model(name, weights=None, num_classes=4).eval()
    own.load_state_dict(mine.network.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(mine(images), own(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_splitting_leaves_what_it_computes(name):
    network = build_network(name, spec()).eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = copy.deepcopy(network)(images)
        found = split(network, (3, SIZE, SIZE), 4).eval()
        assert isinstance(found, SplitNetwork)
        assert torch.allclose(found(images), expected, atol=1e-6)
    # a squeezenet ends in a convolution, all others in a linear layer, which features are taken before
    assert (found.last is None) == (name == "squeezenet1_1")


@pytest.mark.parametrize(
    "given",
    [
        SMALL,
        f"torchvision.models.{SMALL}",
        getattr(models, SMALL),
        functools.partial(getattr(models, SMALL)),
        {"class_path": SMALL},
        {"class_path": "Torchvision", "init_args": {"name": SMALL}},
        functools.partial(Torchvision, name=SMALL),
    ],
    ids=["name", "path", "function", "partial", "recipe", "Torchvision's recipe", "partial of Torchvision"],
)
def test_all_ways_of_naming_one_make_the_same_network_without_trust(given):
    torch.manual_seed(1)
    expected = Torchvision(4, 1, SMALL).state_dict()
    torch.manual_seed(1)
    network = build_network(given, spec(1), trust=False)
    assert type(network) is Torchvision
    assert network.label == SMALL
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_every_classifier_of_torchvision_is_found():
    names = classifier_names()
    assert names == models.list_models(module=models)
    for name in names:
        assert find(name, trust=False).keywords == {"name": name}


@pytest.mark.parametrize(
    "name", ["deeplabv3_resnet50", "list_models", "get_model", "SqueezeNet", "resnet18x"]
)
def test_nothing_else_of_torchvision_goes_without_trust(name):
    with pytest.raises(UserError, match="trust=True"):
        find(f"torchvision.models.{name}", trust=False)
    with pytest.raises(UserError, match="no network"):
        find(name, trust=True)


def test_a_typo_is_met_with_the_classifier_that_is_like_it():
    with pytest.raises(UserError, match=r"no network 'resnt18'; did you mean resnet18\?"):
        find("resnt18", trust=False)
    with pytest.raises(UserError, match="torchvision has no classifier 'resnt18'"):
        Torchvision(name="resnt18")


def test_a_network_that_wants_other_images_is_refused_in_a_sentence():
    with pytest.raises(UserError, match=r"(?s)64 pixels.*224.*data\.image_size"):
        build({"sampler": "single", "network": "vit_b_16", "score": "msp", "fixed": 0.5}, spec())


# channels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", SMALL])
def test_grey_images_give_what_three_equal_channels_gave(name, tmp_path):
    # the sum over the channels of the weights, divided among those there are
    own = models.get_model(name, weights=None).eval()
    torch.save(own.state_dict(), tmp_path / "w.pth")
    grey = Torchvision(1000, 1, name, str(tmp_path / "w.pth")).eval()
    images = torch.randn(2, 1, SIZE, SIZE)
    with torch.no_grad():
        assert torch.allclose(grey(images), own(images.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


# weights ----------------------------------------------------------------------------------------------


def test_weights_of_a_file_are_taken_but_for_the_last_layer_which_is_said(original, weights, caplog):
    with caplog.at_level(logging.WARNING, "osr_lightning"):
        network = Torchvision(4, 3, "resnet18", str(weights))
    (sentence,) = caplog.messages
    assert sentence == (
        f"{weights}: the last layer has 1000 outputs, which are left out; the network learns a new one"
    )
    own = original.state_dict()
    found = network.network.state_dict()
    assert found.keys() == own.keys()
    for name, value in found.items():
        if name in ("fc.weight", "fc.bias"):
            assert value.shape[0] == 4
        else:
            assert torch.equal(value, own[name]), name


def test_a_last_layer_of_as_many_classes_is_taken_without_a_word(original, weights, caplog):
    network = Torchvision(1000, 3, "resnet18", str(weights)).eval()
    assert caplog.messages == []
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(network(images), original(images))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "efficientnet_b0", "densenet121"])
def test_the_last_layer_of_every_family_is_left_out(name, tmp_path, caplog):
    torch.save(models.get_model(name, weights=None, num_classes=7).state_dict(), tmp_path / "w.pth")
    network = Torchvision(4, 3, name, str(tmp_path / "w.pth"))
    assert "the last layer has 7 outputs" in caplog.text
    assert list(network.parameters())[-1].shape == (4,)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_last_layers_are_left_out_too(name, tmp_path):
    with warnings.catch_warnings():
        # torchvision announces another initialisation
        warnings.filterwarnings("ignore", ".*default weight initialization.*", FutureWarning)
        made = models.get_model(name, weights=None, num_classes=7, init_weights=False)
        torch.save(made.state_dict(), tmp_path / "w.pth")
        Torchvision(4, 3, name, str(tmp_path / "w.pth"))


def test_a_state_dict_within_a_training_checkpoint_is_found(original, tmp_path):
    torch.save({"epoch": 3, "state_dict": original.state_dict()}, tmp_path / "w.pth")
    network = Torchvision(1000, 3, "resnet18", str(tmp_path / "w.pth"))
    assert torch.equal(network.network.conv1.weight, original.conv1.weight)


def test_weights_by_a_home_folder_are_found(original, weights, monkeypatch):
    monkeypatch.setenv("HOME", str(weights.parent))
    network = Torchvision(1000, 3, "resnet18", "~/resnet18.pth")
    assert torch.equal(network.network.fc.weight, original.fc.weight)


class Wide(models.resnet.BasicBlock):
    """Of resnet18's names, and other shapes."""

    def __init__(self, inplanes, planes, *arguments, **options):
        super().__init__(inplanes, planes, *arguments, **options)
        self.conv1 = nn.Conv2d(inplanes, planes, 5, padding=2, bias=False)


class Code:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("code of a file of weights was run",)


WRONG = {
    "not a file": (lambda path: None, r"there is no such file; torchvision's for resnet18 are IMAGENET1K_V1"),
    "text": (lambda path: path.write_text("weights"), "no readable file of weights"),
    "empty": (lambda path: path.touch(), "no readable file of weights"),
    "code": (lambda path: torch.save(Code(), path), "no readable file of weights"),
    "a whole network": (
        lambda path: torch.save(nn.Linear(2, 2), path),
        r"UnpicklingError\); give a state dict, as torch.save\(model.state_dict",
    ),
    "no number": (
        lambda path: torch.save({"a": torch.ones(2), "b": torch.tensor([1, torch.nan])}, path),
        r"w.pth: b has values that are no numbers \(NaN\); give other weights",
    ),
    "a tensor": (lambda path: torch.save(torch.zeros(3), path), "holds no state dict"),
    "another network's": (
        lambda path: torch.save(models.squeezenet1_1(weights=None).state_dict(), path),
        r"does not fit the network: \S+ is on one side only",
    ),
    "a deeper one's": (
        lambda path: torch.save(models.resnet34(weights=None).state_dict(), path),
        "does not fit the network: layer1.2.conv1.weight is on one side only",
    ),
    "a wider one's": (
        lambda path: torch.save(models.ResNet(Wide, [2, 2, 2, 2]).state_dict(), path),
        r"does not fit the network: \S+ has another shape",
    ),
    "none": (
        lambda path: torch.save({}, path),
        "holds no state dict of weights",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_file_is_refused(kind, tmp_path):
    write, sentence = WRONG[kind]
    write(tmp_path / "w.pth")
    with pytest.raises(UserError, match=sentence):
        Torchvision(4, 3, "resnet18", str(tmp_path / "w.pth"))


def test_a_state_dict_of_other_things_than_tensors_is_refused(original, tmp_path):
    torch.save({**original.state_dict(), "fc.bias": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"does not fit|no state dict"):
        Torchvision(4, 3, "resnet18", str(tmp_path / "w.pth"))


def test_published_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        UserError, match=r"DEFAULT of resnet18 cannot be downloaded \(no network here\): fetch http"
    ):
        Torchvision(4, 3, "resnet18", "DEFAULT")


def test_published_weights_are_taken_as_a_files_are(original, monkeypatch, caplog):
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: original.state_dict()
    )
    network = Torchvision(4, 1, "resnet18", "DEFAULT")
    assert "1000 outputs" in caplog.text
    assert torch.equal(network.network.layer1[0].conv1.weight, original.layer1[0].conv1.weight)
    summed = original.conv1.weight.sum(1, keepdim=True)
    assert torch.allclose(network.network.conv1.weight, summed, atol=1e-6)


# checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["single", "mc_dropout"])
def test_a_checkpoint_needs_neither_trust_nor_the_weights_file(sampler, original, tmp_path):
    path = tmp_path / "w.pth"
    torch.save(original.state_dict(), path)
    network = {"class_path": "Torchvision", "init_args": {"name": "resnet18", "weights": str(path)}}
    recipe = {"sampler": sampler, "score": "msp", "fixed": 0.5}
    made = build(recipe, spec(), network=network).eval()
    save(made, tmp_path / "x.ckpt")
    path.unlink()
    found = load(tmp_path / "x.ckpt")
    pixels = torch.randint(256, (3, 3, SIZE, SIZE), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(found(pixels).score, made(pixels).score)
    # the trunk has the file's weights, whatever became of the file
    assert torch.equal(found.sampler.network.trunk.network.conv1.weight, original.conv1.weight)
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)["recogniser"]["recipe"]
    assert "weights" not in str(kept)


def test_a_recipe_of_initial_weights_is_left_as_it_was():
    network = {"class_path": "Torchvision", "init_args": {"name": SMALL, "weights": "a.pth"}}
    given = copy.deepcopy(network)
    assert saved_recipe(network) == {"class_path": "Torchvision", "init_args": {"name": SMALL}}
    assert network == given
    assert network_recipe(network) == given  # which builds the network


def test_an_argument_named_weights_of_a_users_network_is_kept():
    network = {"class_path": "my.Net", "init_args": {"weights": 3, "width": 2}}
    assert saved_recipe(network) == network


# dropout ----------------------------------------------------------------------------------------------


def sampled(network, **options):
    recipe = {"sampler": "mc_dropout", "network": network, "num_samples": 10, "score": "msp", "fixed": 0.5}
    return build({**recipe, **options}, spec()).eval()


def test_ten_samples_of_a_network_without_dropout_differ():
    recogniser = sampled("resnet18")
    with torch.no_grad():
        logits = recogniser.sampler(torch.randn(3, 3, SIZE, SIZE)).logits
    assert logits.shape == (10, 3, 4)
    for one in range(10):
        for other in range(one):
            assert not torch.allclose(logits[one], logits[other])
    dropped = (recogniser.sampler.masks == 0).float().mean()
    assert abs(dropped - RATE) < 4 * (RATE * (1 - RATE) / recogniser.sampler.masks.numel()) ** 0.5


@pytest.mark.parametrize("rate", [0.05, 0.6])
def test_the_rate_is_an_option(rate, tmp_path):
    recogniser = sampled("resnet18", dropout=rate)
    masks = recogniser.sampler.masks
    assert sorted(masks.unique().tolist()) == pytest.approx([0, 1 / (1 - rate)])
    assert abs((masks == 0).float().mean() - rate) < 4 * (rate * (1 - rate) / masks.numel()) ** 0.5
    save(recogniser, tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt").sampler
    assert found.network.dropout.p == rate
    assert torch.equal(found.masks, masks)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_a_network_with_dropout_of_its_own_keeps_it_and_has_no_such_option(name):
    logits = sampled(name).sampler(torch.randn(2, 3, SIZE, SIZE)).logits
    assert not torch.allclose(logits[0], logits[1], rtol=1e-3, atol=0)
    with pytest.raises(UserError, match=r"model\.dropout is for a network without dropout of its own"):
        sampled(name, dropout=0.4)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, float("nan"), "0.3"])
@pytest.mark.parametrize("network", [BaselineCNN, MCDropoutCNN])
def test_a_rate_out_of_range_is_refused(rate, network):
    with pytest.raises(UserError, match=r"model\.dropout must lie between 0 and 1, got"):
        give_dropout(network(), rate)


def test_a_network_without_dropout_is_given_one():
    network = BaselineCNN()
    assert give_dropout(network, None) == RATE == 0.3
    assert isinstance(network.dropout, nn.Dropout)
    assert network.dropout.p == 0.3
    network = BaselineCNN()
    assert give_dropout(network, 0.7) == 0.7
    assert network.dropout.p == 0.7


@pytest.mark.parametrize(("network", "rate"), [(MCDropoutCNN, 0.5), (ConvNet, 0.3)])
def test_a_network_with_one_dropout_stays_as_it_is_or_gets_the_rate(network, rate):
    made = network()
    kind = type(made.dropout)
    assert give_dropout(made, None) is None
    assert made.dropout.p == rate
    assert give_dropout(made, 0.2) == 0.2
    assert made.dropout.p == 0.2
    assert type(made.dropout) is kind


def test_a_dropout_of_rate_zero_is_none():
    made = ConvNet(dropout=0)
    assert give_dropout(made, 0.2) == 0.2
    assert made.dropout.p == 0.2


@pytest.mark.parametrize("part", ["trunk", "head", "both"])
def test_dropouts_deeper_in_the_network_take_no_rate(part):
    made = ConvNet(dropout=0.3 if part == "both" else 0)
    target = made.trunk if part == "trunk" else made.head
    target.append(nn.Dropout(0.4))
    assert give_dropout(made, None) is None
    with pytest.raises(UserError, match=r"model\.dropout is for a network without dropout of its own"):
        give_dropout(made, 0.2)
    assert target[-1].p == 0.4
