"""All options of a command, as the signatures and docstrings behind them say."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pydoc import ErrorDuringImport, locate
from typing import Any, Literal, NamedTuple

from docstring_parser import DocstringStyle, parse

from osr_lightning.cli.arguments import TRUST, nearest, value_of
from osr_lightning.data.augment import AUGMENTATIONS
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.sources import SOURCES
from osr_lightning.errors import UserError
from osr_lightning.models.networks import NETWORKS
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.training.callbacks.evaluator import Evaluator
from osr_lightning.training.module import (
    BaselineClassifier,
    EnsembleClassifier,
    MCDropoutClassifier,
    OpenSetClassifier,
)
from osr_lightning.training.trainer import OpenSetTrainer

CLASSIFIERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (MCDropoutClassifier, BaselineClassifier, EnsembleClassifier)
}
_WORDS = {bool: "true|false", int: "INTEGER", float: "NUMBER", list: "LIST", dict: "MAP", str: "TEXT"}


class Option(NamedTuple):
    """One option.

    Attributes:
        hint: its type.
        default: its value while it is not given.
        text: the docstring's, in one line.
    """

    hint: Any
    default: object
    text: str

    @property
    def choices(self) -> list[str]:
        """The values it may have, where they are few."""
        kinds = _kinds(self.hint)
        found = [str(value) for kind in kinds if _is_literal(kind) for value in typing.get_args(kind)]
        return list(dict.fromkeys([*found, *(["true", "false"] if bool in kinds else [])]))

    @property
    def takes(self) -> str:
        """What follows it, for the help."""
        words: list[str] = []
        for kind in _kinds(self.hint):
            if _is_literal(kind):
                words += map(str, typing.get_args(kind))
            elif kind not in (None, type(None)):
                words.append(_WORDS.get(typing.get_origin(kind) or kind, "CLASS"))
        return "|".join(dict.fromkeys(words))


def options_of(command: str, classifier: type[Any] = MCDropoutClassifier) -> dict[str, Option]:
    """Every option of a command but for those of the parser itself.

    Args:
        command: a method of the trainer.
        classifier: whose options begin with ``model.``.
    """
    seed = "seed of the weights, of the order of images, of augmentation and of dropout in training"
    found = {
        "config": Option(str, None, "YAML of options; what follows on the command line wins"),
        "seed_everything": Option(int, 0, seed),
        "trust_checkpoint": Option(None, False, TRUST),
        "verbose": Option(None, False, "Lightning tells of its own doings, and of every module"),
    }
    method = getattr(OpenSetTrainer, command)
    hidden = ("model", "datamodule", "return_predictions", "verbose", "weights_only")
    for name, option in _parameters(method, method.__doc__):
        if name not in hidden and "dataloaders" not in name:
            found[name] = option
    found["model"] = Option(OpenSetClassifier, MCDropoutClassifier.__name__, "class of what is trained")
    found |= {f"model.{name}": option for name, option in parameters(classifier).items()}
    found |= {f"data.{name}": option for name, option in parameters(OpenSetDataModule).items()}
    found |= {f"evaluation.{name}": option for name, option in parameters(Evaluator).items()}
    found |= {f"trainer.{name}": option for name, option in parameters(OpenSetTrainer).items()}
    del found["trainer.verbose"]  # it is that above
    found["optimizer"] = Option(object, None, "class of torch.optim; its options follow as optimizer.NAME")
    found["lr_scheduler"] = Option(
        object, None, "class of torch.optim.lr_scheduler; its options follow as lr_scheduler.NAME"
    )
    return found


def parameters(kind: type[Any]) -> dict[str, Option]:
    """What a class is built with, and its parents as far as it hands on other arguments."""
    found: dict[str, Option] = {}
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        constructor = vars(parent)["__init__"]
        for name, option in _parameters(constructor, parent.__doc__, constructor.__doc__):
            found.setdefault(name, option)
        kinds = {parameter.kind for parameter in inspect.signature(constructor).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


def summary(kind: type[Any]) -> str:
    """The first sentence of a class's docstring."""
    return _flat(parse(kind.__doc__ or "").short_description)


def find_class(name: str, known: dict[str, type[Any]]) -> type[Any]:
    """The class of a name or class path.

    Raises:
        UserError: where there is none, with those that are.
    """
    try:
        found = known.get(name) or locate(name)
    except ErrorDuringImport as error:
        raise UserError(f"{name} cannot be imported: {error}") from error
    if not isinstance(found, type):
        raise UserError(f"there is no class {name!r}; {nearest(name, known)}")
    return found


def classifier(arguments: Sequence[str]) -> type[Any]:
    """The one that the command line names, or the default.

    Raises:
        UserError: where there is none of that name.
    """
    name = value_of(arguments, "--model") or ""
    if not re.fullmatch(r"[\w.]+", name) or name.endswith((".yaml", ".yml", ".json")):
        return MCDropoutClassifier
    return find_class(name, CLASSIFIERS)


def names_of(option: str) -> list[str]:
    """Names that an option may take beside its choices; none where they are not few."""
    registries: dict[str, Iterable[str]] = {
        "model.score": (*SCORES, *DETECTORS),
        "model.augment": AUGMENTATIONS,
        "data.known": SOURCES,
        "data.predict": SOURCES,
    }
    return [*registries[option]] if option in registries else [*classes_of(option)]


def classes_of(option: str) -> dict[str, type[Any]]:
    """The classes that an option takes by name; none where it takes none."""
    from lightning.pytorch import Callback, callbacks, loggers
    from torch import optim

    if option in ("model", "model.network"):
        return CLASSIFIERS if option == "model" else networks()
    schedulers = optim.lr_scheduler
    kinds: dict[str, tuple[object, type[Any]]] = {
        "optimizer": (optim, optim.Optimizer),
        "lr_scheduler": (schedulers, schedulers.LRScheduler),
        "trainer.callbacks": (callbacks, Callback),
        "trainer.logger": (loggers, loggers.Logger),
    }
    if option not in kinds:
        return {}
    place, base = kinds[option]
    found = {name: kind for name, kind in vars(place).items() if isinstance(kind, type)}
    return {name: kind for name, kind in sorted(found.items()) if issubclass(kind, base) and kind is not base}


def networks() -> dict[str, type[Any]]:
    """This package's networks by name."""
    from osr_lightning.models import torchvision_networks  # noqa: F401 - registers its own

    return dict(NETWORKS)


def _parameters(function: Any, *docstrings: str | None) -> Iterator[tuple[str, Option]]:  # noqa: ANN401
    texts = {
        entry.arg_name: _flat(entry.description)
        for docstring in docstrings
        for entry in parse(docstring or "", DocstringStyle.GOOGLE).params
    }
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
    except NameError:  # of a class of others, whose types are imported for type checkers alone
        hints = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            yield name, Option(hints.get(name, str), default, texts.get(name, ""))


def _kinds(hint: Any) -> list[Any]:  # noqa: ANN401
    """A union's members, and theirs."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(hint) for kind in _kinds(member)]
    return [hint]


def _is_literal(kind: Any) -> bool:  # noqa: ANN401
    return typing.get_origin(kind) is Literal


def _flat(text: str | None) -> str:
    """A docstring's text in one line, without its markup."""
    return re.sub(r":\w+:`~?|`+", "", " ".join((text or "").split()))
