"""From what a user or a checkpoint says of a network to the network: recipes and how they are cooked."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.models import networks
from osr_lightning.models.backbones import Backbone, OnBackbone, is_class_path
from osr_lightning.models.networks import NETWORKS
from osr_lightning.models.torchvision_networks import Torchvision, classifier_names

Recipe: TypeAlias = dict[str, Any]
_MODELS = "torchvision.models."
_OF_DATA = ("in_channels", "image_size")  # what a factory is told of the images
NetworkLike: TypeAlias = nn.Module | Callable[..., nn.Module] | str | Mapping[str, Any]


def network_recipe(network: NetworkLike) -> Recipe | None:
    """What makes the network, in plain values: ``class_path`` and ``init_args``.

    Args:
        network: the name of one in ``NETWORKS``, a class path, a class or function, a ``partial`` of one
            with arguments, or a recipe.

    Returns:
        None for a module, or where the arguments are not plain values: who loads the checkpoint must give
        the network again.

    Raises:
        UserError: if it is none of these.
    """
    if isinstance(network, nn.Module):
        return None
    if isinstance(network, str):
        return {"class_path": network, "init_args": {}}
    if not isinstance(network, Mapping) and not callable(network):
        raise UserError(f"a network is a name, a class, a function or a module, not {network!r}")
    if isinstance(network, Mapping):
        path, arguments = network.get("class_path"), network.get("init_args") or {}
        if not isinstance(path, str) or not isinstance(arguments, Mapping):
            raise UserError("a network's recipe has a class_path and init_args; the checkpoint's has not")
        return {"class_path": path, "init_args": dict(arguments)}
    function, arguments = _open(network)
    name = getattr(function, "__qualname__", "<lambda>")
    if "<" in name or not all(map(_is_plain, arguments.values())):
        return None
    path = name if NETWORKS.get(name) is function else f"{function.__module__}.{name}"
    return {"class_path": path, "init_args": arguments}


def saved_recipe(network: NetworkLike) -> Recipe | None:
    """`network_recipe` as a checkpoint keeps it: without initial weights."""
    recipe = network_recipe(network)
    if recipe is not None and makes(recipe, OnBackbone):
        recipe["init_args"]["weights"] = None
    if recipe is not None and _is_torchvisions(recipe["class_path"]):
        recipe["init_args"].pop("weights", None)
    return recipe


def origin(recipe: Recipe) -> Recipe:
    """Which checkpoint a member of an ensemble came from: ``file`` and ``seed``, where it says."""
    kinds = {"file": str, "seed": int}
    return {name: recipe[name] for name, kind in kinds.items() if isinstance(recipe.get(name), kind)}


def makes(recipe: Recipe, network: type[nn.Module]) -> bool:
    """Whether this makes a network of that class of this package's, or of one below it."""
    return issubclass(NETWORKS.get(_short(recipe["class_path"]), object), network)


def _short(path: str) -> str:
    """The name in ``NETWORKS``, of a class path of this package's."""
    for module in (networks.__name__, Backbone.__module__):
        path = path.removeprefix(f"{module}.")
    return path


def _is_torchvisions(path: str) -> bool:
    name = path.removeprefix(f"{networks.__name__}.")
    return name == Torchvision.__name__ or (name not in NETWORKS and "." not in name.removeprefix(_MODELS))


def build_network(network: NetworkLike, spec: DataSpec, *, trust: bool = False) -> nn.Module:
    """Build the network for the known images: a factory gets their number of classes and its like.

    A factory gets ``num_classes`` (or, under another name, its first parameter), and ``in_channels`` and
    ``image_size`` if it has such parameters.

    Args:
        network: see `network_recipe`; of a module, a copy is taken.
        spec: of the known images.
        trust: whether a name outside of ``NETWORKS`` may be imported, which runs code.

    Raises:
        UserError: if there is no such network, it may not be imported, or it cannot be built.
    """
    if isinstance(network, nn.Module):
        return copy.deepcopy(network)  # it will be taken apart
    if isinstance(network, (str, Mapping)):
        recipe = network_recipe(network)
        assert recipe is not None
        function, arguments = find(recipe["class_path"], trust=trust), recipe["init_args"]
    else:
        function, arguments = _open(network)
    if isinstance(function, functools.partial):  # a name of torchvision's
        function, arguments = _open(functools.partial(function, **arguments))
    backbone = isinstance(function, type) and issubclass(function, OnBackbone)
    if backbone and is_class_path(name := str(arguments.get("name", ""))):
        arguments = {**arguments, "factory": find(name, trust=trust)}
    name = getattr(function, "__name__", type(function).__name__)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the network {name} says nothing of its arguments; give a class or function"
        ) from error
    kinds = [parameter.kind for parameter in parameters.values()]
    offered = dict(zip(_OF_DATA, (spec.channels, spec.image_size), strict=True))
    # the command line's parser puts None where a parameter without default is not given
    arguments = {k: v for k, v in arguments.items() if k not in offered or v is not None}
    given = {key: value for key, value in offered.items() if key in parameters} | arguments
    positional: list[int] = []
    first = next(iter(parameters), None)
    if "num_classes" in parameters or first is None or kinds[0] == inspect.Parameter.KEYWORD_ONLY:
        given.setdefault("num_classes", spec.num_classes)
    elif first not in given:
        positional = [spec.num_classes]
    try:
        inspect.signature(function).bind(*positional, **given)
        built = function(*positional, **given)
    except UserError:
        raise
    except Exception as error:  # whatever a user's code raises
        raise UserError(
            f"the network {name} cannot be built for {spec.num_classes} classes: {error}; "
            "its factory takes num_classes, and in_channels and image_size if it needs them"
        ) from error
    if not isinstance(built, nn.Module):
        raise UserError(f"{name} gives {type(built).__name__}, which is no network (nn.Module)")
    return built


def find(path: str, *, trust: bool) -> Callable[..., nn.Module]:
    """The factory of that name.

    Raises:
        UserError: if there is none, or it may not be imported.
    """
    name = _short(path)
    if name in NETWORKS:
        return NETWORKS[name]
    last = path.removeprefix(_MODELS)
    if "." not in last and last in classifier_names():
        return functools.partial(Torchvision, name=last)
    if "." not in path:
        there = (
            f"the networks are {', '.join(NETWORKS)}, torchvision's classifiers, as resnet18, and any class "
            "path, as my_package.MyNet"
        )
        raise UserError(
            f"there is no network {path!r}; {did_you_mean(path, [*NETWORKS, *classifier_names()], there)}"
        )
    if not trust:
        raise UserError(
            f"the network is {path}, code from outside of this package, which a checkpoint alone may not "
            "run: if you trust it, pass --trust_checkpoint (in Python: load(path, trust=True))"
        )
    try:
        found = _import(path)
    except Exception as error:  # a module may raise anything
        raise UserError(f"the network {path} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"{path} is no class or function that makes a network")
    return found  # type: ignore[no-any-return]


def _import(path: str) -> Any:  # noqa: ANN401
    """The object at ``module.Name`` or ``module.Outer.Inner``."""
    module, _, rest = path.rpartition(".")
    names = [rest]
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            outer, _, name = module.rpartition(".")
            if not outer or error.name != module:
                raise
            module, names = outer, [name, *names]
    return functools.reduce(getattr, names, found)


def _open(network: Callable[..., nn.Module]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    """A factory and the arguments that were bound to it."""
    if not isinstance(network, functools.partial):
        module, name = getattr(network, "__module__", ""), getattr(network, "__name__", "")
        if str(module).startswith(_MODELS) and name in classifier_names():
            return Torchvision, {"name": name}  # which knows of channels
        return network, {}
    if network.func.__module__.partition(".")[0] == "jsonargparse":
        # the command line's parser binds its own function, and the class as its last argument
        return network.args[-1], _without_defaults(network.args[-1], network.keywords)
    if network.args:
        return network, {}
    function, arguments = _open(network.func)
    return function, arguments | network.keywords


def _without_defaults(factory: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the parser filled in of an image's shape, which the data knows better."""
    parameters = inspect.signature(factory).parameters
    return {
        name: value
        for name, value in arguments.items()
        if name not in _OF_DATA or name not in parameters or value != parameters[name].default
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))
