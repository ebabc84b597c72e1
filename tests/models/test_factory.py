"""From what names a network to the network, and back to plain values."""

import functools
import sys
import types

import pytest
import torch
from torch import nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.factory import NETWORKS, build_network, find, network_recipe
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN

SPEC = DataSpec(("a", "b", "c"), 3, 20, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


class Noted(nn.Module):
    """Remembers what it was given."""

    def __init__(self, **given):
        super().__init__()
        self.given = given


class Full(Noted):
    def __init__(self, num_classes, in_channels=1, image_size=28, width=8):
        super().__init__(num_classes=num_classes, in_channels=in_channels, image_size=image_size, width=width)


class ClassesOnly(Noted):
    def __init__(self, num_classes):
        super().__init__(num_classes=num_classes)


class OtherName(Noted):
    def __init__(self, how_many, image_size=28):
        super().__init__(how_many=how_many, image_size=image_size)


def function(num_classes, in_channels, width=4):
    return Full(num_classes, in_channels, width=width)


@pytest.fixture
def elsewhere(monkeypatch):
    """A module that can be imported, and notes that it was asked."""
    module = types.ModuleType("elsewhere_of_this_test")
    module.Full, module.number = Full, 3
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.__name__


# what a factory gets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "given"),
    [
        (Full, {"num_classes": 3, "in_channels": 3, "image_size": 20, "width": 8}),
        (ClassesOnly, {"num_classes": 3}),
        (OtherName, {"how_many": 3, "image_size": 20}),
        (function, {"num_classes": 3, "in_channels": 3, "image_size": 28, "width": 4}),
        (lambda count: ClassesOnly(count), {"num_classes": 3}),
        (
            functools.partial(Full, width=2),
            {"num_classes": 3, "in_channels": 3, "image_size": 20, "width": 2},
        ),
        # what was given wins
        (
            functools.partial(Full, in_channels=1, num_classes=7),
            {"num_classes": 7, "in_channels": 1, "image_size": 20, "width": 8},
        ),
        (functools.partial(OtherName, image_size=9), {"how_many": 3, "image_size": 9}),
        (
            functools.partial(functools.partial(Full, width=2, image_size=5), width=6),
            {"num_classes": 3, "in_channels": 3, "image_size": 5, "width": 6},
        ),
        (functools.partial(Full, 7), {"num_classes": 7, "in_channels": 3, "image_size": 20, "width": 8}),
    ],
)
def test_facts_are_given_where_the_signature_has_them_and_given_values_win(factory, given):
    assert build_network(factory, SPEC).given == given


OTHERWISE = {
    "BaselineCNN": {"hidden": 9, "kernel_size": 3},
    "MCDropoutCNN": {"hidden": 9, "kernel_size": 3},
    "ConvNet": {"channels": [4, 9]},
    "ResNet9": {"channels": [4, 9]},
    "ResNet18": {"dropout": 0.1},
    "VGG32": {"dropout": 0.1},
    "Torchvision": {"name": "shufflenet_v2_x0_5"},
}


ON_BACKBONES = ("Backbone", "Wrapped")


@pytest.mark.parametrize("name", ON_BACKBONES)
@pytest.mark.parametrize("path", ["{}", "osr_lightning.models.backbones.{}"])
def test_networks_on_backbones_go_by_name(name, path):
    options = {"name": "shufflenet_v2_x0_5", "weights": None}
    network = build_network({"class_path": path.format(name), "init_args": options}, SPEC)
    assert type(network) is NETWORKS[name]
    assert network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ON_BACKBONES])
@pytest.mark.parametrize("path", ["{}", "osr_lightning.models.networks.{}"])
def test_the_packages_own_networks_go_by_name(name, path):
    recipes = [path.format(name), {"class_path": path.format(name)}]
    recipes.append({"class_path": path.format(name), "init_args": OTHERWISE[name]})
    made = []
    for recipe in recipes:
        network = build_network(recipe, SPEC)
        assert type(network) is NETWORKS[name]
        assert network.eval()(torch.zeros(2, 3, 20, 20)).shape == (2, 3)
        rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
        made.append((sum(parameter.numel() for parameter in network.parameters()), rates))
    assert made[0] == made[1] != made[2]  # the arguments of a recipe are taken


def test_of_a_module_a_copy_is_taken():
    network = nn.Linear(2, 2)
    found = build_network(network, SPEC)
    assert found is not network
    assert torch.equal(found.weight, network.weight)
    assert found.weight.data_ptr() != network.weight.data_ptr()


# recipes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "path", "arguments"),
    [
        (MCDropoutCNN, "MCDropoutCNN", {}),
        ("BaselineCNN", "BaselineCNN", {}),
        ("my.Net", "my.Net", {}),
        (
            functools.partial(BaselineCNN, hidden=3, channels=[4]),
            "BaselineCNN",
            {"hidden": 3, "channels": [4]},
        ),
        ({"class_path": "my.Net", "init_args": {"width": 1}}, "my.Net", {"width": 1}),
        ({"class_path": "my.Net", "init_args": None}, "my.Net", {}),
        (Full, f"{__name__}.Full", {}),
        (function, f"{__name__}.function", {}),
        (functools.partial(function, width=2), f"{__name__}.function", {"width": 2}),
    ],
)
def test_recipes_are_names_and_plain_values(network, path, arguments):
    assert network_recipe(network) == {"class_path": path, "init_args": arguments}


def local():
    def made_here(num_classes):
        return ClassesOnly(num_classes)

    return made_here


@pytest.mark.parametrize(
    "network",
    [
        nn.Linear(1, 1),
        lambda num_classes: ClassesOnly(num_classes),
        local(),
        functools.partial(lambda num_classes: ClassesOnly(num_classes)),
        functools.partial(Full, width=object()),
        functools.partial(Full, width=[torch.zeros(1)]),
        functools.partial(Full, 7),
    ],
    ids=["module", "lambda", "local", "partial of a lambda", "object", "tensor in a list", "by position"],
)
def test_what_cannot_be_named_in_plain_values_has_no_recipe(network):
    assert network_recipe(network) is None


def test_a_recipe_builds_what_the_factory_built():
    factory = functools.partial(BaselineCNN, hidden=9, kernel_size=3)
    torch.manual_seed(0)
    expected = build_network(factory, SPEC)
    torch.manual_seed(0)
    found = build_network(network_recipe(factory), SPEC)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in found.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_a_recipe_is_not_changed_by_building():
    recipe = {"class_path": "BaselineCNN", "init_args": {"kernel_size": 3}}
    build_network(recipe, SPEC)
    assert recipe == {"class_path": "BaselineCNN", "init_args": {"kernel_size": 3}}


class Outer:
    class Inner(ClassesOnly):
        pass


def test_a_class_within_a_class_can_be_found_by_its_recipe(monkeypatch):
    module = types.ModuleType("nested_of_this_test")
    module.Outer = Outer
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Outer.Inner, "__module__", module.__name__)
    assert build_network(network_recipe(Outer.Inner), SPEC, trust=True).given == {"num_classes": 3}


# trust ------------------------------------------------------------------------------------------------


def test_a_name_from_elsewhere_is_not_imported_without_trust(elsewhere, monkeypatch):
    path = f"{elsewhere}.Full"
    with monkeypatch.context() as patch:
        patch.setattr("importlib.import_module", lambda name: pytest.fail(f"imported {name}"))
        for named in (path, {"class_path": path, "init_args": {}}):
            with pytest.raises(UserError, match=rf"{path}, code from outside .*trust=True"):
                build_network(named, SPEC)
    assert build_network({"class_path": path, "init_args": {"width": 2}}, SPEC, trust=True).given == {
        "num_classes": 3,
        "in_channels": 3,
        "image_size": 20,
        "width": 2,
    }


@pytest.mark.parametrize(
    "path",
    [
        "osr_lightning.models.networks.torch.hub.load",
        "osr_lightning.cli.lightning_cli.main",
        "os.system",
        ".BaselineCNN",
    ],
)
def test_a_path_through_this_package_needs_trust_too(path):
    with pytest.raises(UserError, match="trust=True"):
        find(path, trust=False)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}.Missing", "cannot be imported"),
        ("no_such_package_at_all.Net", "cannot be imported"),
        ("..Net", "cannot be imported"),
        ("{}.number", "no class or function"),
    ],
)
def test_a_trusted_name_that_is_no_factory_is_refused(path, message, elsewhere):
    with pytest.raises(UserError, match=message):
        build_network(path.format(elsewhere), SPEC, trust=True)


# refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"), [("MCDropoutCN", "did you mean MCDropoutCNN"), ("zzz", "networks are")]
)
def test_an_unknown_name_is_met_with_those_there_are(name, hint):
    with pytest.raises(UserError, match=f"no network '{name}'.*{hint}.*BaselineCNN"):
        build_network(name, SPEC)


@pytest.mark.parametrize("recipe", [{}, {"class_path": 3}, {"class_path": "a.B", "init_args": [1]}])
def test_a_damaged_recipe_is_refused(recipe):
    with pytest.raises(UserError, match="class_path and init_args"):
        network_recipe(recipe)


@pytest.mark.parametrize(
    "factory",
    [lambda num_classes: "a network", dict.fromkeys, lambda count: None],
)
def test_what_makes_no_network_is_refused(factory):
    with pytest.raises(UserError, match=r"no network \(nn\.Module\)|cannot be built"):
        build_network(factory, SPEC)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: ClassesOnly(3), "cannot be built for 3 classes"),
        (lambda num_classes, needed: ClassesOnly(3), "'needed'"),
        (functools.partial(Full, widht=3), "'widht'"),
        ({"class_path": "BaselineCNN", "init_args": {"widht": 3}}, "'widht'"),
        (functools.partial(BaselineCNN, hidden="many"), "cannot be built|must be"),
        (functools.partial(BaselineCNN, hidden=0), "hidden must be at least 1"),
    ],
)
def test_what_cannot_be_built_says_why(factory, message):
    with pytest.raises(UserError, match=message):
        build_network(factory, SPEC)


def test_an_error_within_the_factory_names_the_factory():
    def own(num_classes):
        raise RuntimeError("no weights there")

    with pytest.raises(UserError, match="the network own cannot be built for 3 classes: no weights there"):
        build_network(own, SPEC)


@pytest.mark.parametrize("error", [ValueError, AssertionError, KeyError])
def test_any_error_within_the_factory_names_the_factory(error):
    def own(num_classes):
        raise error("bad width")

    with pytest.raises(UserError, match="the network own cannot be built"):
        build_network(own, SPEC)


def test_a_factory_that_takes_the_number_of_classes_among_its_keywords():
    def among(*, weights=None, progress=True, **keywords):
        return ClassesOnly(**keywords)

    assert build_network(among, SPEC).given == {"num_classes": 3}


def test_a_partial_that_binds_a_class_by_position():
    def with_activation(activation, num_classes):
        assert activation is nn.ReLU
        return ClassesOnly(num_classes)

    assert build_network(functools.partial(with_activation, nn.ReLU), SPEC).given == {"num_classes": 3}


def test_a_number_of_classes_of_another_name_that_was_given_wins():
    assert build_network(functools.partial(OtherName, how_many=7), SPEC).given["how_many"] == 7
