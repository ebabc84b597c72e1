"""MC dropout: every way to compute the samples gives the numbers of the plain loop with the same masks."""

import copy
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.models.dropout import active_dropouts
from osr_lightning.models.ensemble import Ensemble
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN, SplitNetwork
from osr_lightning.models.sampling import Layers, Single
from osr_lightning.models.split import split

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
MASKS = ["shared", "independent"]
METHODS = ["fold", "trunk", "loop"]
SHAPE = (1, 28, 28)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images_of(count, seed=1):
    return torch.randn(count, *SHAPE, generator=seeded(seed))


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def sampler_of(network, num_samples, masks="shared", method="auto", seed=0, shape=SHAPE):
    """Of a copy, as a sampler changes the network that it is given."""
    network = copy.deepcopy(network)
    parameter = next(network.parameters(), torch.zeros(()))
    with torch.no_grad():
        classes = copy.deepcopy(network).eval()(torch.zeros(2, *shape).to(parameter)).shape[1]
    return MCDropout(split(network, shape, classes), shape, num_samples, masks, seed, method)


def sample_logits(network, images, num_samples, **options):
    return sampler_of(network, num_samples, shape=images.shape[1:], **options)(images).logits


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


# the numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_samples", [1, 2, 11])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("p", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("masks", MASKS)
def test_every_method_gives_the_numbers_of_the_study(masks, p, count, num_samples, device):
    network = MCDropoutCNN(dropout=p).to(device)
    images = images_of(count).to(device)
    with torch.no_grad():
        expected = study_loop(network, images, num_samples, masks, p)
        for method in ("auto", *METHODS):
            actual = sample_logits(network, images, num_samples, masks=masks, method=method)
            assert actual.shape == (num_samples, count, 10)
            close(actual, expected)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("layers", [(), ("logits",)])
def test_chunks_are_invisible(monkeypatch, masks, layers):
    network, images = MCDropoutCNN(), images_of(7)
    expected = sampler_of(network, 5, masks, "loop")(images, layers)
    # 3 images where it is folded, or 1 sample
    monkeypatch.setattr("osr_lightning.models.fold._CPU_CHUNK", 3 * 32 * 120)
    monkeypatch.setattr("osr_lightning.models.sampling._TRUNK_IMAGES", 2)
    for method in ("fold", "trunk"):
        actual = sampler_of(network, 5, masks, method)(images, layers)
        close(actual.logits, expected.logits)
        close(actual.features, expected.features)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("method", METHODS)
def test_more_samples_keep_the_first_ones(method, masks):
    network, images = MCDropoutCNN(), images_of(3)
    few, many = (sample_logits(network, images, n, masks=masks, method=method) for n in (3, 40))
    close(many[:3], few)


def test_more_samples_of_a_deep_dropout_keep_the_first_ones():
    network, images = Residual().eval(), images_of(3)
    few, many = (sample_logits(network, images, n) for n in (2, 9))
    close(many[:2], few)
    assert not torch.equal(many[2], few[0])


@pytest.mark.parametrize("kind", ["channel dropout", "element dropout", "residual"])
def test_shared_masks_do_not_depend_on_batch_or_order(kind):
    images = images_of(9)
    sampler = sampler_of(USERS_NETWORKS[kind]().eval(), 4)
    whole = sampler(images).logits
    close(torch.cat([sampler(part).logits for part in images.split(2)], dim=1), whole)
    close(sampler(images.flip(0)).logits.flip(1), whole)


@pytest.mark.parametrize("kind", ["channel dropout", "element dropout", "residual"])
def test_independent_masks_differ_between_images_and_shared_ones_do_not(kind):
    torch.manual_seed(0)
    network, images = USERS_NETWORKS[kind]().eval(), images_of(1).expand(6, -1, -1, -1)
    shared = sample_logits(network, images, 3)
    close(shared, shared[:, :1].expand_as(shared))
    assert len(shared[:, 0].unique(dim=0)) > 1
    independent = sample_logits(network, images, 3, masks="independent")
    assert len(independent[0].unique(dim=0)) > 1


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d])
@pytest.mark.parametrize("masks", MASKS)
def test_units_are_kept_as_often_as_they_should_and_scaled(kind, masks):
    network = nn.Sequential(kind(0.3), nn.Flatten())  # shows the mask itself
    logits = sample_logits(network, torch.ones(10, 50, 1, 1), 100, masks=masks)
    kept = logits > 0
    drawn = kept[:, :1] if masks == "shared" else kept
    assert drawn.double().mean() == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / drawn.numel()) ** 0.5)
    close(logits[kept].unique(), torch.tensor([1 / 0.7]))


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides_the_masks_and_a_state_dict_keeps_them(method):
    network, images = MCDropoutCNN(), images_of(2)
    first, again, other = (sampler_of(network, 3, method=method, seed=seed) for seed in (5, 5, 6))
    expected = first(images).logits
    close(expected, study_loop(network, images, 3, "shared", 0.5, seed=5))
    assert torch.equal(again(images).logits, expected)
    assert not torch.equal(other(images).logits, expected)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(images).logits, expected)


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_copies_and_pickles_ask_the_same(method):
    images = images_of(2)
    for masks in MASKS:
        sampler = sampler_of(MCDropoutCNN(), 3, masks, method)
        twins = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]  # noqa: S301 - our own
        expected = sampler(images).logits
        for twin in twins:
            assert torch.equal(twin(images).logits, expected)


# what is left alone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_modes_are_left_as_found_and_dropout_is_on_in_either(method, training):
    network, images = MCDropoutCNN().train(training), images_of(2)
    network.head.train(not training)
    modes = {name: module.training for name, module in network.named_modules()}
    sampler = MCDropout(network, SHAPE, 3, method=method)
    for layers in ((), ("logits",)):
        assert len(sampler(images, layers).logits.unique(dim=0)) == 3
        # of a stand-in, the mode of what it stands for counts
        found = {n: getattr(module, "original", module).training for n, module in network.named_modules()}
        assert {name: found[name] for name in modes} == modes


@pytest.mark.parametrize("kind", ["element dropout", "batch norm in the head", "residual"])
def test_asking_in_eval_mode_changes_nothing_that_is_kept(kind):
    sampler = sampler_of(USERS_NETWORKS[kind](), 3).eval()
    before = {name: value.clone() for name, value in sampler.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in sampler.named_modules()}
    sampler(images_of(4), ("logits",))
    assert {name: set(vars(module)) for name, module in sampler.named_modules()} == attributes
    for name, value in sampler.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_building_a_sampler_shows_a_batch_norm_no_image():
    network = Residual().train()
    before = copy.deepcopy(network.state_dict())
    MCDropout(split(network, SHAPE, 4), SHAPE, 3)
    assert network.norm.training
    for name, value in network.state_dict().items():
        if name in before:
            assert torch.equal(value, before[name]), name
    assert network.norm.num_batches_tracked == 0


def test_a_failed_pass_leaves_dropout_as_the_mode_says():
    network = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(784, 3))
    sampler = sampler_of(network, 2, method="loop").eval()
    with pytest.raises(RuntimeError):
        sampler(torch.zeros(1, 1, 4, 4))
    images = images_of(2)
    close(sampler.training_logits(images), network.eval()(images))


@pytest.mark.parametrize("method", ["auto", "loop"])
@pytest.mark.parametrize("masks", MASKS)
def test_the_global_random_state_is_neither_used_nor_changed(masks, method):
    network, images = MCDropoutCNN(), images_of(2)
    before = torch.get_rng_state()
    sampler = sampler_of(network, 3, masks, method)
    first = sampler(images).logits
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    sampler.restart()
    assert torch.equal(sampler(images).logits, first)
    # without a new beginning, independent masks go on, and shared ones are constants
    assert torch.equal(sampler(images).logits, first) == (masks == "shared")


# precision and gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("masks", MASKS)
def test_autocast(masks, device):
    network, images = MCDropoutCNN().to(device), images_of(5).to(device)
    exact = sample_logits(network, images, 6, masks=masks)
    with torch.autocast(device, torch.bfloat16), torch.inference_mode():
        for method in METHODS:
            logits = sample_logits(network, images, 6, masks=masks, method=method)
            assert logits.dtype == torch.bfloat16
            close(logits.float(), exact.detach(), atol=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_and_float64(method):
    network, images = MCDropoutCNN().double(), images_of(3).double()
    expected = study_loop(network, images, 4, "shared", 0.5)
    sampler = sampler_of(network, 4, method=method)
    with torch.inference_mode():
        actual = sampler(images).logits
    assert actual.is_inference()
    close(actual, expected.detach(), atol=1e-12 if method == "loop" else 1e-11)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_the_written_out_loop(method, masks):
    network, images = MCDropoutCNN().double(), images_of(3).double()
    sampler = sampler_of(network, 4, masks, method)
    ours = torch.autograd.grad(sampler(images).logits.square().sum(), list(sampler.network.parameters()))
    expected = study_loop(network, images, 4, masks, 0.5).square().sum()
    for actual, theirs in zip(ours, torch.autograd.grad(expected, list(network.parameters())), strict=True):
        close(actual, theirs, atol=1e-9)


# users' networks ------------------------------------------------------------------------------------


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


def two_dropouts():
    return nn.Sequential(*flat(nn.Dropout(0.5)), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3))


class OtherForward(MCDropoutCNN):
    """Has the three parts, but does more than they do."""

    def forward(self, images):
        return 2 * super().forward(images - 0.5)


class Unused(SplitNetwork):
    """Has a dropout that its forward never calls."""

    def __init__(self, *parts):
        super().__init__(*parts)
        self.spare = nn.Dropout(0.5)


def same_dropout_twice():
    drop = nn.Dropout(0.5)
    return nn.Sequential(nn.Flatten(), drop, nn.Linear(784, 9), nn.ReLU(), drop, nn.Linear(9, 3))


def same_dropout_in_a_nested_head():
    drop = nn.Dropout(0.5)
    return nn.Sequential(nn.Flatten(), drop, nn.Sequential(nn.Linear(784, 9), drop, nn.Linear(9, 3)))


class Attention(nn.Module):
    """In eval mode and without gradients torch computes such a layer at once, past its dropouts."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(28, 2, 16, dropout=0.3, batch_first=True)
        self.layer.self_attn.dropout = 0.0  # a number, which nobody can see
        self.last = nn.Linear(28, 3)

    def forward(self, images):
        return self.last(self.layer(images[:, 0]).mean(1))


class DropoutAfterTheLastLinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.last, self.drop = nn.Linear(784, 3), nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.last(images.flatten(1)))


USERS_NETWORKS = {
    "channel dropout": lambda: flat(nn.Dropout2d(0.5)),
    "element dropout": lambda: flat(nn.Dropout(0.5)),
    "dropout in place": lambda: flat(nn.Dropout(0.5, inplace=True)),
    "no bias": lambda: nn.Sequential(nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(784, 3, bias=False)),
    "nested": lambda: nn.Sequential(flat(nn.Dropout2d(0.5)), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 3)),
    "two dropouts": two_dropouts,
    "a dropout with p=0": lambda: nn.Sequential(nn.Dropout(0.0), *flat(nn.Dropout2d(0.5))),
    "dropout first": lambda: nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(784, 3)),
    "dropout last": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 3), nn.Dropout(0.5)),
    "dropout unused": lambda: Unused(nn.Flatten(), nn.Identity(), nn.Sequential(nn.Linear(784, 3))),
    "batch norm in the head": lambda: nn.Sequential(
        nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(784, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)
    ),
    "residual": Residual,
    "another forward": OtherForward,
    "the same dropout twice": same_dropout_twice,
    "the same dropout in a nested head": same_dropout_in_a_nested_head,
    "dropout after the last linear": DropoutAfterTheLastLinear,
}


# what is wrong in the package today; whoever repairs it takes the entry out
def patched_loop(network, images, num_samples, masks):
    """The network itself, one pass a sample, its dropouts replaced by the definition of dropout."""
    generator = seeded()

    def with_our_masks(dropout, features):
        if dropout.p == 0:
            return features
        shape = features.shape if type(dropout) is nn.Dropout else (*features.shape[:2], 1, 1)
        if masks == "shared":
            shape = (1, *shape[1:])
        return features * (torch.rand(shape, generator=generator) >= dropout.p).to(features) / (1 - dropout.p)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Dropout, "forward", with_our_masks)
        patch.setattr(nn.Dropout2d, "forward", with_our_masks)
        return torch.stack([network(images) for _ in range(num_samples)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("name", USERS_NETWORKS)
def test_a_users_network_gives_the_numbers_of_its_loop(name, masks, training, device):
    torch.manual_seed(0)
    network, images = USERS_NETWORKS[name]().train(training).to(device), images_of(4).to(device)
    with torch.no_grad():
        expected = patched_loop(copy.deepcopy(network), images, 3, masks)
        for method in ("auto", "loop"):
            close(sample_logits(network, images, 3, masks=masks, method=method), expected)


@pytest.mark.parametrize("masks", MASKS)
def test_attention_layers_drop_in_eval_mode_too(masks):
    torch.manual_seed(0)
    network, images = Attention().eval(), images_of(4)
    # with gradients, torch takes the way that calls the dropouts
    expected = patched_loop(copy.deepcopy(network), images, 3, masks).detach()
    with torch.no_grad():
        close(sample_logits(network, images, 3, masks=masks), expected)


@pytest.mark.parametrize("name", ["channel dropout", "element dropout", "a dropout with p=0"])
def test_what_precedes_the_dropout_runs_once(name):
    sampler, calls = sampler_of(USERS_NETWORKS[name](), 5), []
    convolution = next(m for m in sampler.modules() if isinstance(m, nn.Conv2d))
    convolution.register_forward_hook(lambda *_: calls.append(1))
    sampler(images_of(2))
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["two dropouts", "residual"])
def test_several_threads_ask_one_deep_network_as_one_does(name):
    sampler = sampler_of(USERS_NETWORKS[name]().eval(), 5)
    batches = [images_of(3, seed) for seed in range(24)]
    layers = ("penultimate", "logits")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places in the middle of a pass
    try:
        with torch.no_grad():
            expected = [sampler(batch, layers) for batch in batches]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(torch.no_grad()(lambda batch: sampler(batch, layers)), batches))
    finally:
        sys.setswitchinterval(interval)
    for one, other in zip(expected, found, strict=True):
        close(other.logits, one.logits)
        close(other.features, one.features)


# refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_samples": 0}, "num_samples.*0"), ({"masks": "fresh"}, "masks.*shared.*fresh")],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        MCDropout(MCDropoutCNN(), SHAPE, **options)


def test_a_method_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"method.*magic"):
        MCDropout(MCDropoutCNN(), SHAPE, method="magic")


@pytest.mark.parametrize("network", [BaselineCNN, lambda: MCDropoutCNN(dropout=0.0)])
def test_a_network_without_dropout_is_refused(network):
    with pytest.raises(UserError, match=r"needs a network with dropout.*BaselineClassifier"):
        MCDropout(network(), SHAPE)


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
    with pytest.raises(UserError, match="method fold"):
        sampler_of(USERS_NETWORKS[name](), 2, method="fold")


# features of layers ---------------------------------------------------------------------------------


def hooked(network, images, named, last):
    """What a module ``named`` gives and the layer ``last`` sees and gives, in a pass without dropout."""
    network, seen = copy.deepcopy(network).eval(), {}
    # copied, as the next layer may work in place
    network.get_submodule(named).register_forward_hook(
        lambda module, inputs, output: seen.update({"early": output.clone()})
    )
    network.get_submodule(last).register_forward_hook(
        lambda module, inputs, output: seen.update(penultimate=inputs[0].clone(), logits=output.clone())
    )
    network(images)
    return seen


SAMPLERS = {
    "single": (BaselineCNN, "trunk.3", "head.3", "3", lambda network: Single(copy.deepcopy(network))),
    **{
        f"{method} {masks}": (
            MCDropoutCNN,
            "trunk.3",
            "head.3",
            "3",
            lambda network, masks=masks, method=method: sampler_of(network, 3, masks, method),
        )
        for masks in MASKS
        for method in METHODS
    },
    **{
        f"deep {masks}": (
            two_dropouts,
            "0",
            "8",
            "0",
            lambda network, masks=masks: sampler_of(network, 3, masks),
        )
        for masks in MASKS
    },
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [3, 130])  # 130: more than run through the trunk at once
@pytest.mark.parametrize("name", SAMPLERS)
def test_features_are_what_hooks_see_without_dropout(name, count, training):
    kind, early, last, layer, sampler = SAMPLERS[name]
    network, images = kind(), images_of(count)
    expected = hooked(network, images, early, last)
    sampler = sampler(network).train(training)
    with torch.no_grad():
        found = sampler(images, ("penultimate", layer, "logits"))
        assert found.features.keys() == {"penultimate", layer, "logits"}
        close(found.features["penultimate"], expected["penultimate"])
        close(found.features["logits"], expected["logits"])
        close(found.features[layer], expected["early"])
        close(sampler.last_layer(found.features["penultimate"]), expected["logits"])
        # nor do the samples change for being watched
        sampler.restart()
        close(found.logits, sampler(images).logits)


@pytest.mark.parametrize(
    "network",
    [
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 5, stride=4), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(144, 3)
        ),
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 3)),
    ],
    ids=["channels", "elements"],
)
@pytest.mark.parametrize("masks", MASKS)
def test_features_where_the_head_is_the_last_layer_alone(network, masks):
    network, images = network(), images_of(5)
    expected = hooked(network, images, "0", str(len(network) - 1))
    with torch.no_grad():
        found = sampler_of(network, 3, masks)(images, ("penultimate", "logits"))
    close(found.features["penultimate"], expected["penultimate"])
    close(found.features["logits"], expected["logits"])
    close(found.logits, sample_logits(network, images, 3, masks=masks))


@pytest.mark.parametrize("layers", [(), ("penultimate", "logits")])
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch(method, masks, layers):
    found = sampler_of(MCDropoutCNN(), 3, masks, method)(images_of(0), layers)
    assert found.logits.shape == (3, 0, 10)
    assert {n: tuple(f.shape) for n, f in found.features.items()} == dict(
        zip(layers, [(0, 120), (0, 10)], strict=False)
    )


def test_a_layer_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(UserError, match=r"no layer 'stem'; it has: 0, 1, 2, 3, 4, 5"):
        sampler_of(MCDropoutCNN(), 2)(images_of(1), ("stem",))


def test_a_network_that_does_not_end_in_a_linear_layer_has_no_features():
    network = nn.Sequential(nn.Conv2d(1, 3, 28), nn.Dropout(0.5), nn.Flatten())
    sampler = sampler_of(network, 2)
    assert sampler(images_of(2)).logits.shape == (2, 2, 3)
    with pytest.raises(UserError, match=r"does not end in an nn\.Linear"):
        sampler(images_of(2), ("penultimate",))
    with pytest.raises(UserError, match=r"does not end in an nn\.Linear"):
        _ = sampler.last_layer


def test_a_last_layer_that_does_not_see_one_vector_per_image():
    network = SplitNetwork(
        nn.Identity(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(28, 3), nn.Flatten(2), nn.AdaptiveMaxPool1d(1)),
    )
    with pytest.raises(UserError, match=r"must see features \(B, D\)"):
        Single(network)(images_of(2), ("logits",))


# ensembles ------------------------------------------------------------------------------------------


def ensemble():
    torch.manual_seed(0)
    members = [
        Single(BaselineCNN()),
        MCDropout(MCDropoutCNN(hidden=7), SHAPE, 3),
        MCDropout(MCDropoutCNN(), SHAPE, 2, method="loop"),
    ]
    return Ensemble(members), members


def test_an_ensembles_samples_stand_side_by_side():
    sampler, members = ensemble()
    images = images_of(5)
    assert sampler.num_samples == 6
    found = sampler(images, ("penultimate", "logits", "0", "1:penultimate", "2:0/pooled"))
    alone = [member(images, ("penultimate", "logits", "0")) for member in members]
    close(found.logits, torch.cat([one.logits for one in alone]))
    for layer in ("penultimate", "0"):
        close(found.features[layer], torch.cat([one.features[layer] for one in alone], dim=1))
    assert found.features["penultimate"].shape == (5, 120 + 7 + 120)
    close(found.features["logits"], sum(one.features["logits"] for one in alone) / 3)
    close(found.features["1:penultimate"], alone[1].features["penultimate"])
    pooled = members[2](images, ("0/pooled",)).features["0/pooled"]
    close(found.features["2:0/pooled"], pooled)
    assert not sampler(images).features


def test_layers_of_an_ensembles_networks():
    sampler, members = ensemble()
    nested = Ensemble([sampler, members[0]])
    blocks = members[0].network.blocks
    for number, before in ((1, "0:1:"), (3, "1:")):
        own = Layers(tuple(before + name for name in blocks), before + "penultimate", 0)
        assert nested.layers_by_network[number] == own
    images = images_of(5)
    found = nested(images, ("0:1:penultimate", "1:penultimate")).features
    close(found["0:1:penultimate"], members[1](images, ("penultimate",)).features["penultimate"])
    close(found["1:penultimate"], members[0](images, ("penultimate",)).features["penultimate"])


@pytest.mark.parametrize("bias", [True, False])
def test_the_last_layer_of_an_ensemble_makes_the_mean_logits(bias):
    sampler, members = ensemble()
    if not bias:  # of one member only
        members[1].network.head[3].bias = None
    found = sampler(images_of(5), ("penultimate", "logits"))
    close(sampler.last_layer(found.features["penultimate"]), found.features["logits"])


def test_an_ensemble_begins_again_with_every_member():
    sampler = Ensemble([MCDropout(MCDropoutCNN(), SHAPE, 2, "independent", seed) for seed in (0, 1)])
    images = images_of(3)
    first = sampler(images).logits
    assert not torch.equal(sampler(images).logits, first)
    sampler.restart()
    assert torch.equal(sampler(images).logits, first)


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(UserError, match="at least one member"):
        Ensemble([])
