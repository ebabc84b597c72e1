"""A wrapped classifier is the classifier: its logits are its own, or it is refused."""

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import OWN, Backbone, Wrapped, pixel_format, pretrained
from osr_lightning.models.factory import build_network
from osr_lightning.models.sampling import Single
from osr_lightning.models.torchvision_networks import own_names
from osr_lightning.scoring.detectors import DETECTORS

TIMM = ("test_efficientnet", "test_resnet", "test_vit", "test_convnext", "test_convnext2", "test_mambaout")
TORCHVISION = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5")


class Small(nn.Module):
    """A classifier of a user's own, without a bias in its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(6, 4, bias=False)

    def forward(self, images):
        return self.classifier(self.body(images).flatten(1))


class Grey(Small):
    """It takes grey images."""

    def __init__(self) -> None:
        super().__init__()
        self.body[0] = nn.Conv2d(1, 6, 3)


class Certain(Small):
    """It ends in a softmax."""

    def forward(self, images):
        return super().forward(images).softmax(1)


class Deep(Small):
    """What its last layer gives goes on through another."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier, self.early = nn.Linear(5, 4), nn.Linear(6, 5)

    def forward(self, images):
        return self.classifier(self.early(self.body(images).flatten(1)))


@pytest.mark.parametrize("name", [*(f"timm:{one}" for one in TIMM), *TORCHVISION])
@pytest.mark.parametrize("outputs", [None, [4, 0, 2]])
def test_logits_are_those_of_the_classifier(name, outputs, tmp_path):
    torch.manual_seed(0)
    own = name.removeprefix("timm:")
    if own == name:
        original = models.get_model(name, weights=None, num_classes=5)
    else:
        original = timm.create_model(own, pretrained=False, num_classes=5)
    torch.save(original.state_dict(), tmp_path / "mine.pth")
    wrapped = Wrapped(3 if outputs else 5, name, str(tmp_path / "mine.pth"), outputs).eval()
    size = 160 if own != name else 64
    images = torch.rand(3, 3, size, size)
    with torch.no_grad():
        expected = original.eval()(images)[:, outputs or [0, 1, 2, 3, 4]]
        assert expected.std() > 0
        torch.testing.assert_close(wrapped(images), expected, rtol=0, atol=1e-4)
    pretrained(name, str(tmp_path / "mine.pth")).refuse_more(name, images)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_class_of_ones_own_is_wrapped_too(from_file, tmp_path):
    original = Small().eval()
    torch.save(original.state_dict(), tmp_path / "mine.pth")
    factory = Small if from_file else lambda: original
    weights = str(tmp_path / "mine.pth") if from_file else OWN
    images = torch.rand(3, 3, 20, 20)
    with torch.no_grad():
        expected = original(images)
        pretrained("mine.Small", weights, Small).refuse_more("mine.Small", images)
        wrapped = Wrapped(4, "mine.Small", weights, factory=factory).eval()
        torch.testing.assert_close(wrapped(images), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod.", "net.backbone."])
@pytest.mark.parametrize("name", ["timm:test_resnet", "resnet18", "mine.Small"])
def test_weights_of_a_part_of_a_larger_network_are_found(name, prefix, tmp_path):
    torch.manual_seed(0)
    factory = Small if name == "mine.Small" else None
    if factory is not None:
        original = Small()
    elif name == "resnet18":
        original = models.resnet18(weights=None, num_classes=4)
    else:
        original = timm.create_model("test_resnet", pretrained=False, num_classes=4)
    state = {f"{prefix}{key}": value for key, value in original.state_dict().items()}
    torch.save({"state_dict": {"loss.weight": torch.ones(4), **state}}, tmp_path / "mine.ckpt")
    wrapped = Wrapped(4, name, str(tmp_path / "mine.ckpt"), factory=factory).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(images), original.eval()(images), rtol=0, atol=1e-4)


def test_a_network_whose_names_all_begin_alike_keeps_them():
    state = {"net.a.weight": torch.ones(1), "net.b.weight": torch.ones(1)}
    assert own_names(state, ["net.a.weight", "net.b.weight"]) == state
    assert [*own_names(state, ["a.weight", "b.weight"])] == ["a.weight", "b.weight"]
    assert own_names(state, ["others"]) == state


@pytest.mark.parametrize("name", ["timm:test_resnet", "resnet18", "mine.Grey"])
def test_a_classifier_of_grey_images_is_wrapped(name, tmp_path):
    torch.manual_seed(0)
    factory = Grey if name == "mine.Grey" else None
    if factory is not None:
        original = Grey()
    elif name == "resnet18":
        original = models.resnet18(weights=None, num_classes=4)
        original.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    else:
        original = timm.create_model("test_resnet", pretrained=False, num_classes=4, in_chans=1)
    file = tmp_path / "mine.pth"
    torch.save(original.state_dict(), file)
    assert pretrained(name, str(file), factory).channels == 1
    wanted = pixel_format(name, str(file), 1)
    assert wanted.channels == len(wanted.mean) == len(wanted.std) == 1
    spec = DataSpec(("a", "b", "c", "d"), 1, 64, (0.5,), (0.25,))
    images, wrapped = torch.rand(2, 1, 64, 64), Wrapped(4, name, str(file), factory=factory).eval()
    recipe = {"class_path": "Wrapped", "init_args": {"name": name, "weights": None}}
    if factory is not None:
        recipe["init_args"]["name"] = f"{__name__}.Grey"
    rebuilt = build_network(recipe, spec, trust=True).eval()  # as a checkpoint does
    rebuilt.load_state_dict(wrapped.state_dict())
    with torch.no_grad():
        for found in (wrapped, rebuilt):
            torch.testing.assert_close(found(images), original.eval()(images), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", [Certain, Deep])
def test_a_classifier_that_does_more_is_refused(kind):
    with pytest.raises(UserError, match="does more after its"):
        pretrained("mine.Net", OWN, kind).refuse_more("mine.Net", torch.rand(2, 3, 20, 20))


def test_a_classifier_that_takes_no_such_images_is_refused():
    with pytest.raises(UserError, match="does not take images of 1 channels and 20 pixels"):
        pretrained("mine.Small", OWN, Small).refuse_more("mine.Small", torch.rand(2, 1, 20, 20))


def test_a_classifier_without_a_linear_layer_is_refused():
    with pytest.raises(UserError, match="the backbone squeezenet1_0 has no"):
        Wrapped(3, "squeezenet1_0", None)


def test_another_number_of_outputs_is_refused_with_both():
    with pytest.raises(UserError, match="4 outputs, of which 4 are taken, and there are 3 known classes"):
        Wrapped(3, "mine.Small", OWN, factory=Small)
    with pytest.raises(UserError, match="the weights own are those of a class path"):
        Wrapped(3, "resnet18", OWN)


def test_nothing_of_the_body_changes_in_a_training():
    wrapped = Wrapped(4, "mine.Small", OWN, factory=Small).train()
    before = {name: value.clone() for name, value in wrapped.body.state_dict().items()}
    wrapped(torch.rand(8, 3, 20, 20)).sum().backward()
    assert all(torch.equal(before[name], value) for name, value in wrapped.body.state_dict().items())
    assert all(weight.grad is None for weight in wrapped.body.parameters())


def test_code_of_others_needs_trust():
    spec = DataSpec(("a", "b", "c", "d"), 3, 20, (0.5,) * 3, (0.25,) * 3)
    recipe = {"class_path": "Wrapped", "init_args": {"name": f"{__name__}.Small", "weights": None}}
    with pytest.raises(UserError, match="trust_checkpoint"):
        build_network(recipe, spec)
    assert isinstance(build_network(recipe, spec, trust=True), Wrapped)


def test_gaussians_look_at_a_wrapped_classifiers_features_at_unit_length():
    samplers = [Single(Wrapped(4, "mine.Small", OWN, factory=Small))]
    samplers.append(Single(Backbone(4, "mine.Small", None, factory=Small)))
    found = [DETECTORS[name].of(sampler).unit_length for sampler in samplers for name in _GAUSSIANS]
    assert found == [True, True, False, False]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=generator).double() + 3
    labels, logits = torch.arange(40) % 4, torch.zeros(40, 4)
    longer = features * (1 + torch.rand(40, 1, generator=generator))
    for name in _GAUSSIANS:
        scores = []
        for values in (features, longer):
            seen = {"penultimate": values, "logits": logits, "log_probability": logits.log_softmax(1)}
            detector = DETECTORS[name].of(samplers[0])
            detector.fit(seen, labels)
            scores.append(detector(seen))
        torch.testing.assert_close(*scores)


_GAUSSIANS = ("mahalanobis", "relative_mahalanobis")
