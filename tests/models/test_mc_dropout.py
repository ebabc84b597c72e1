"""MC dropout: every way to compute the samples gives the numbers of the plain loop with the same masks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import active_dropouts, sample_logits
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN, SplitNetwork

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
MASKS = ["shared", "independent"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images_of(count, seed=1):
    return torch.randn(count, 1, 28, 28, generator=seeded(seed))


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def study_loop(network, images, num_samples, masks, p, seed=0):
    """The study's order of layers (dropout before the pooling), written out, one pass at a time."""
    generator, logits = seeded(seed), []
    conv1, conv2, linear1, linear2 = (m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    for _ in range(num_samples):
        shape = (1 if masks == "shared" else len(images), conv2.out_channels, 1, 1)
        mask = (torch.rand(shape, generator=generator) >= p).to(images) / (1 - p)
        hidden = F.max_pool2d(F.relu(conv1(images)), 2)
        hidden = F.max_pool2d(F.relu(conv2(hidden)) * mask, 2)
        logits.append(linear2(F.relu(linear1(hidden.flatten(1)))))
    return torch.stack(logits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_samples", [1, 2, 11])
@pytest.mark.parametrize("count", [0, 1, 6])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("masks", MASKS)
def test_every_method_gives_the_numbers_of_the_study(masks, p, count, num_samples, device):
    network = MCDropoutCNN(dropout=p).to(device)
    images = images_of(count).to(device)
    with torch.no_grad():
        expected = study_loop(network, images, num_samples, masks, p)
        for method in ("auto", "trunk", "loop", *(["fold"] if p else [])):
            actual = sample_logits(
                network, images, num_samples, masks=masks, generator=seeded(), method=method
            )
            assert actual.shape == (num_samples, count, 10)
            close(actual, expected)


@pytest.mark.parametrize("masks", MASKS)
def test_chunks_are_invisible(monkeypatch, masks):
    network, images = MCDropoutCNN(), images_of(7)
    expected = sample_logits(network, images, 5, masks=masks, generator=seeded(), method="loop")
    monkeypatch.setattr("osr_lightning.models.mc_dropout._CPU_CHUNK", 3 * 32 * 120)  # 3 images, or 1 sample
    for method in ("fold", "trunk"):
        close(sample_logits(network, images, 5, masks=masks, generator=seeded(), method=method), expected)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("method", ["fold", "trunk", "loop"])
def test_more_samples_keep_the_first_ones(method, masks):
    network, images = MCDropoutCNN(), images_of(3)
    few, many = (
        sample_logits(network, images, n, masks=masks, generator=seeded(), method=method) for n in (3, 40)
    )
    close(many[:3], few)


def test_shared_masks_do_not_depend_on_batch_or_order():
    network, images = MCDropoutCNN(), images_of(9)
    whole = sample_logits(network, images, 4, generator=seeded())
    parts = [sample_logits(network, part, 4, generator=seeded()) for part in images.split(2)]
    close(torch.cat(parts, dim=1), whole)
    close(sample_logits(network, images.flip(0), 4, generator=seeded()).flip(1), whole)


def test_independent_masks_differ_between_images_and_shared_ones_do_not():
    network, images = MCDropoutCNN(), images_of(1).expand(6, -1, -1, -1)
    shared = sample_logits(network, images, 3, generator=seeded())
    close(shared, shared[:, :1].expand_as(shared))
    independent = sample_logits(network, images, 3, masks="independent", generator=seeded())
    assert len(independent[0].unique(dim=0)) == 6


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
def test_units_are_kept_as_often_as_they_should_and_scaled(kind):
    network = nn.Sequential(kind(0.3), nn.Flatten())  # shows the mask itself
    logits = sample_logits(network, torch.ones(10, 50, 1, 1), 100, masks="independent", generator=seeded())
    kept = logits > 0
    assert kept.double().mean() == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / kept.numel()) ** 0.5)
    close(logits[kept].unique(), torch.tensor([1 / 0.7]))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["auto", "fold", "trunk", "loop"])
def test_mode_and_modules_are_left_as_found(method, training):
    network, images = MCDropoutCNN().train(training), images_of(2)
    network.head.train(not training)
    modes = {name: module.training for name, module in network.named_modules()}
    attributes = {name: set(vars(module)) for name, module in network.named_modules()}
    logits = sample_logits(network, images, 3, generator=seeded(), method=method)
    assert len(logits.unique(dim=0)) == 3  # dropout is on in either mode
    assert modes == {name: module.training for name, module in network.named_modules()}
    assert attributes == {name: set(vars(module)) for name, module in network.named_modules()}


def test_modules_are_left_as_found_after_an_error():
    network = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))
    network[1].forward = patched = network[1].forward  # another tool's patch stays too
    with pytest.raises(RuntimeError):
        sample_logits(network, torch.zeros(1, 4), 2, method="loop")
    assert "forward" not in vars(network[0])
    assert network[1].forward is patched


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_only_the_given_generator_is_drawn_from(method):
    network, images, generator = MCDropoutCNN(), images_of(2), seeded()
    before, state = torch.get_rng_state(), generator.get_state()
    first = sample_logits(network, images, 3, generator=generator, method=method)
    assert not torch.equal(generator.get_state(), state)
    assert not torch.equal(sample_logits(network, images, 3, generator=generator, method=method), first)
    assert not torch.equal(sample_logits(network, images, 3), sample_logits(network, images, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masks", MASKS)
def test_autocast(masks, device):
    network, images = MCDropoutCNN().to(device), images_of(5).to(device)
    exact = sample_logits(network, images, 6, masks=masks, generator=seeded())
    with torch.autocast(device, torch.bfloat16), torch.inference_mode():
        for method in ("fold", "trunk", "loop"):
            logits = sample_logits(network, images, 6, masks=masks, generator=seeded(), method=method)
            assert logits.dtype == torch.bfloat16
            close(logits.float(), exact.detach(), atol=0.02)


@pytest.mark.parametrize("method", ["fold", "trunk", "loop"])
def test_inference_mode_and_float64(method):
    network, images = MCDropoutCNN().double(), images_of(3).double()
    expected = sample_logits(network, images, 4, generator=seeded(), method="loop")
    with torch.inference_mode():
        actual = sample_logits(network, images, 4, generator=seeded(), method=method)
    assert actual.is_inference()
    close(actual, expected.detach(), atol=1e-12)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("method", ["fold", "trunk"])
def test_gradients_are_those_of_the_loop(method, masks):
    network, images = MCDropoutCNN().double(), images_of(3).double()
    gradients = []
    for how in (method, "loop"):
        logits = sample_logits(network, images, 4, masks=masks, generator=seeded(), method=how)
        gradients.append(torch.autograd.grad(logits.square().sum(), list(network.parameters())))
    for actual, expected in zip(*gradients, strict=True):
        close(actual, expected, atol=1e-9)


class Residual(nn.Module):
    """Batch norm, changes in place, a module called twice, and one dropout called twice in a pass."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 6, 5, stride=3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout2d(0.4)
        self.relu = nn.ReLU(inplace=True)
        self.late = nn.Dropout(0.2)
        self.linear = nn.Linear(6, 4)

    def forward(self, images):
        shortcut = self.stem(images)
        hidden = self.norm(self.conv(shortcut))
        hidden += shortcut
        hidden = self.conv(self.relu(hidden))
        dropped = self.drop(hidden)
        hidden += shortcut  # changes what came before the dropout
        hidden = self.relu(self.drop(dropped + self.conv(hidden)))
        return self.linear(self.late(hidden.mean((2, 3))))


def flat(dropout):
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(4), dropout, nn.Flatten(), nn.Linear(144, 5)
    )


class OtherForward(MCDropoutCNN):
    """Has the three parts, but does more than they do."""

    def forward(self, images):
        return 2 * super().forward(images - 0.5)


class Unused(SplitNetwork):
    """Has a dropout that its forward never calls."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.spare = nn.Dropout(0.5)


USERS_NETWORKS = {
    "channel dropout": lambda: flat(nn.Dropout2d(0.5)),
    "element dropout": lambda: flat(nn.Dropout(0.5)),
    "dropout in place": lambda: flat(nn.Dropout(0.5, inplace=True)),
    "no bias": lambda: nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(784, 3, bias=False)),
    "nested": lambda: nn.Sequential(flat(nn.Dropout2d(0.5)), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3)),
    "two dropouts": lambda: nn.Sequential(
        *flat(nn.Dropout(0.5)), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3)
    ),
    "a dropout with p=0": lambda: nn.Sequential(nn.Dropout(0.0), *flat(nn.Dropout2d(0.5))),
    "dropout first": lambda: nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(784, 3)),
    "dropout last": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.Dropout(0.5)),
    "dropout unused": lambda: Unused(nn.Flatten(), nn.Identity(), nn.Sequential(nn.Linear(784, 3))),
    "batch norm in the head": lambda: nn.Sequential(
        nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(784, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)
    ),
    "residual": Residual,
    "another forward": OtherForward,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", USERS_NETWORKS)
def test_a_users_network_gives_the_numbers_of_its_loop(name, masks, training, device):
    torch.manual_seed(0)
    network, images = USERS_NETWORKS[name]().train(training).to(device), images_of(4).to(device)
    original = copy.deepcopy(network)
    with torch.no_grad():
        expected = sample_logits(network, images, 3, masks=masks, generator=seeded(), method="loop")
        for method in ("auto", "trunk"):
            actual = sample_logits(original, images, 3, masks=masks, generator=seeded(), method=method)
            close(actual, expected)


def test_the_loop_is_the_network_itself_with_the_same_masks(monkeypatch):
    network, images = Residual().train(), images_of(4)
    generator = seeded()

    def with_our_masks(dropout, features):
        shape = features.shape if type(dropout) is nn.Dropout else (*features.shape[:2], 1, 1)
        return features * (torch.rand(shape, generator=generator) >= dropout.p) / (1 - dropout.p)

    logits = sample_logits(network, images, 3, masks="independent", generator=seeded(), method="loop")
    monkeypatch.setattr(nn.Dropout, "forward", with_our_masks)
    monkeypatch.setattr(nn.Dropout2d, "forward", with_our_masks)
    close(logits, torch.stack([network(images) for _ in range(3)]))


@pytest.mark.parametrize("name", ["channel dropout", "nested", "residual"])
def test_what_precedes_the_first_dropout_runs_once(name):
    network, calls = USERS_NETWORKS[name](), []
    convolution = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    forward = convolution.forward
    convolution.forward = lambda images: calls.append(1) or forward(images)
    sample_logits(network, images_of(2), 5)
    assert len(calls) == 1


def test_without_active_dropout_one_pass_is_expanded():
    for network in (BaselineCNN(), MCDropoutCNN(dropout=0.0)):
        images = images_of(2)
        logits = sample_logits(network, images, 4)
        assert torch.equal(logits, network(images).expand(4, -1, -1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples.*0"),
        ({"masks": "fresh"}, "masks.*shared.*fresh"),
        ({"method": "magic"}, "method.*fold.*magic"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        sample_logits(MCDropoutCNN(), images_of(1), **{"num_samples": 2, **options})


@pytest.mark.parametrize("kind", [nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_alpha_dropout_is_refused(kind):
    with pytest.raises(UserError, match=f"1.*{kind.__name__}"):
        active_dropouts(nn.Sequential(nn.Flatten(), kind(0.5)))
    assert active_dropouts(nn.Sequential(nn.Flatten(), kind(0.0))) == []


def test_a_dropout_of_everything_is_refused():
    with pytest.raises(UserError, match=r"p=1\.0"):
        active_dropouts(nn.Sequential(nn.Dropout(1.0)))


@pytest.mark.parametrize("name", ["element dropout", "nested", "residual", "another forward"])
def test_folding_what_cannot_be_folded_is_refused(name):
    with pytest.raises(UserError, match="fold"):
        sample_logits(USERS_NETWORKS[name](), images_of(1), 2, method="fold")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_generator_on_another_device_is_refused():
    with pytest.raises(UserError, match="generator"):
        sample_logits(MCDropoutCNN(), images_of(1), 2, generator=torch.Generator("cuda"))
