"""All options of a command, as the signatures and docstrings behind them say."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from docstring_parser import DocstringStyle, parse

from osr_lightning.cli.arguments import TRUST, nearest, value_of
from osr_lightning.data.augment import names as augmentation_names
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.mix import MIXES
from osr_lightning.data.sources import SOURCES
from osr_lightning.errors import UserError
from osr_lightning.models.networks import NETWORKS
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.training.callbacks.evaluator import Evaluator
from osr_lightning.training.losses import LOSSES
from osr_lightning.training.module import CLASSIFIERS, MCDropoutClassifier, OpenSetClassifier
from osr_lightning.training.trainer import OpenSetTrainer
from osr_lightning.yaml_files import ENDINGS

_WORDS = {
    bool: "true|false",
    int: "INTEGER",
    float: "NUMBER",
    list: "LIST",
    dict: "MAP",
    str: "TEXT",
    timedelta: "TIME",
}
# those whose values are classes, with options of their own
WITH_CLASSES = ("model", "model.network", "optimizer", "lr_scheduler", "trainer.logger", "trainer.callbacks")
# methods of the trainer that are commands, and their parameters that the command line fills itself
METHODS = {
    "run": {"model", "datamodule"},
    "calibrate": {"model", "datamodule"},
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
    "validate": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
    "test": {"model", "dataloaders", "datamodule", "verbose", "weights_only"},
    "predict": {"model", "dataloaders", "datamodule", "return_predictions"},
}
_CLAUSE = re.compile(r"[;:.] ")


class Option(NamedTuple):
    """One option.

    Attributes:
        hint: its type; None for a flag, which takes no value.
        default: its value while it is not given.
        text: the docstring's, in one line.
    """

    hint: Any
    default: object
    text: str

    @property
    def kinds(self) -> list[Any]:
        """The types of its values; a mapping's is dict, whatever is in it, and literals are themselves."""
        return [kind for kind in kinds_of(self.hint) if kind not in (None, type(None))]

    @property
    def literals(self) -> list[str]:
        """The values that its type names."""
        found = [str(value) for kind in self.kinds if _is_literal(kind) for value in typing.get_args(kind)]
        return list(dict.fromkeys(found))

    @property
    def choices(self) -> list[str]:
        """The values it may have, where they are few."""
        return [*self.literals, *(["true", "false"] if bool in self.kinds else [])]

    @property
    def has_parts(self) -> bool:
        """Whether names may follow its own, as the entry of a mapping or an argument of a class."""
        return any(not _is_literal(kind) and kind not in (bool, int, float, str) for kind in self.kinds)

    @property
    def parts(self) -> dict[str, Option]:
        """The fields of the dataclass that it takes; empty where it takes none."""
        members = (self.hint, *typing.get_args(self.hint))
        found = next((one for one in members if isinstance(one, type) and is_dataclass(one)), None)
        return {} if found is None else parameters(found)

    @property
    def takes(self) -> str:
        """What follows it, for the help."""
        words: list[str] = []
        for kind in self.kinds:
            words += typing.get_args(kind) if _is_literal(kind) else [_WORDS.get(kind, "CLASS")]
        return "|".join(dict.fromkeys(map(str, words)))

    @property
    def clause(self) -> str:
        """What it does: the first clause of its text."""
        return _CLAUSE.split(self.text)[0].removesuffix(".")

    @property
    def unset(self) -> str:
        """What holds while it is not given: its default, or the text's `...; X if not given`."""
        if self.hint is None:
            return ""
        if self.default is not None:
            return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)
        clauses = (re.fullmatch(r"(.+?),? if not given\.?", clause) for clause in _CLAUSE.split(self.text))
        return next((found[1] for found in clauses if found), "")


def options_of(command: str, classifier: type[Any] = MCDropoutClassifier) -> dict[str, Option]:
    """Every option of a command.

    Args:
        command: a method of the trainer.
        classifier: whose options begin with ``model.``.
    """
    trainer = parameters(OpenSetTrainer)
    seed = "seed of the training; of its first weights, order of images, augmentation and dropout"
    found = {
        "config": Option(str, None, "YAML of options; what follows on the command line wins"),
        "print_config": Option(None, False, "print all settings as YAML and stop"),
        "seed_everything": Option(int, 0, seed),
        "trust_checkpoint": Option(None, False, TRUST),
        "verbose": trainer.pop("verbose")._replace(hint=None),
    }
    method = getattr(OpenSetTrainer, command)
    # a method of Lightning's takes the checkpoint that predict takes
    own = vars(OpenSetTrainer).get(command, OpenSetTrainer.predict)
    for name, option in _parameters(method, _texts(own.__doc__)):
        if name not in METHODS[command]:
            found[name] = option
    about = "kind of classifier"
    found["model"] = Option(OpenSetClassifier, MCDropoutClassifier.__name__, about)
    found |= {f"model.{name}": option for name, option in parameters(classifier).items()}
    found |= {f"data.{name}": option for name, option in parameters(OpenSetDataModule).items()}
    found |= {f"evaluation.{name}": option for name, option in parameters(Evaluator).items()}
    found |= {f"trainer.{name}": option for name, option in trainer.items()}
    about = "class of torch.optim; Adam or AdamW, as suits the network, if not given. Its options follow as "
    found["optimizer"] = Option(object, None, f"{about}optimizer.NAME")
    about = "class of torch.optim.lr_scheduler; model.schedule if not given. Its options follow as "
    found["lr_scheduler"] = Option(object, None, f"{about}lr_scheduler.NAME")
    return found


def parameters(kind: type[Any]) -> dict[str, Option]:
    """What a class is built with, and its parents as far as it hands on other arguments."""
    found: dict[str, Option] = {}
    docstrings: list[str | None] = []
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        constructor = vars(parent)["__init__"]
        docstrings += [constructor.__doc__, parent.__doc__]
        for name, option in _parameters(constructor, {}):
            found.setdefault(name, option)
        kinds = {parameter.kind for parameter in inspect.signature(constructor).parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    texts = _texts(*docstrings)  # a class may say more of an argument that it hands on
    return {name: option._replace(text=texts.get(name, "")) for name, option in found.items()}


def summary(kind: type[Any]) -> str:
    """The first sentence of a class's docstring."""
    return _flat(parse(kind.__doc__ or "").short_description)


def find_class(name: str, known: dict[str, type[Any]]) -> type[Any]:
    """The class of a name or class path.

    Raises:
        UserError: where there is none, with those that are.
    """
    try:
        found = class_named(name, known)
    except ImportError as error:
        raise UserError(f"{name} cannot be imported: {error}") from error
    except (AttributeError, ValueError):
        found = None
    if not isinstance(found, type):
        raise UserError(f"there is no class {name!r}; {nearest(name, known)}")
    return found


def classifier(arguments: Sequence[str]) -> type[Any]:
    """The one that the command line names, or the default.

    Raises:
        UserError: where there is none of that name.
    """
    name = value_of(arguments, "--model") or ""
    if not re.fullmatch(r"[\w.]+", name) or name.endswith(ENDINGS):
        return MCDropoutClassifier
    return find_class(name, CLASSIFIERS)


def names_of(option: str) -> list[str]:
    """Names that an option may take beside its choices; none where they are not few."""
    registries: dict[str, Iterable[str]] = {
        "model.score": (*SCORES, *DETECTORS),
        "model.augment": augmentation_names(),
        "model.loss": LOSSES,
        "model.mix": MIXES,
        "data.known": SOURCES,
        "data.predict": SOURCES,
    }
    return [*registries[option]] if option in registries else [*classes_of(option)]


def classes_of(option: str) -> dict[str, type[Any]]:
    """The classes that an option takes by name; none where it takes none."""
    from lightning.pytorch import Callback, callbacks, loggers
    from torch import optim

    if option in ("model", "model.network"):
        return CLASSIFIERS if option == "model" else NETWORKS
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
    public = {name: kind for name, kind in vars(place).items() if not name.startswith("_")}
    found = {name: kind for name, kind in public.items() if isinstance(kind, type)}
    return {name: kind for name, kind in sorted(found.items()) if issubclass(kind, base) and kind is not base}


def class_named(path: str, known: Mapping[str, type[Any]]) -> Any:  # noqa: ANN401
    """What a name or a path of Python's stands for.

    Raises:
        ImportError: where there is no such module.
        AttributeError: where it has no such name.
        ValueError: for a name that is no path, and of none of the ``known``.
    """
    if path in known:
        return known[path]
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(path)
    return getattr(importlib.import_module(module), name)


def _parameters(function: Any, texts: Mapping[str, str]) -> Iterator[tuple[str, Option]]:  # noqa: ANN401
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
    except NameError:  # of a class of others, whose types are imported for type checkers alone
        hints = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            default = None if parameter.default is inspect.Parameter.empty else parameter.default
            yield name, Option(hints.get(name, str), default, texts.get(name, ""))


@functools.cache  # nine tenths of the time that the table takes
def _texts(*docstrings: str | None) -> dict[str, str]:
    """What docstrings say of arguments; the first one counts that does not send to another."""
    found: dict[str, str] = {}
    for docstring in docstrings:
        for entry in parse(docstring or "", DocstringStyle.GOOGLE).params:
            if (text := _flat(entry.description)) and not text.startswith("see "):
                found.setdefault(entry.arg_name, text)
    return found


def kinds_of(hint: Any) -> list[Any]:  # noqa: ANN401
    """A union's members, and theirs, without what is in them."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return [kind for member in typing.get_args(hint) for kind in kinds_of(member)]
    if is_dataclass(hint):
        return [dict]
    return [hint if origin is Literal else origin or hint]


def _is_literal(kind: Any) -> bool:  # noqa: ANN401
    return typing.get_origin(kind) is Literal


def _flat(text: str | None) -> str:
    """A docstring's text in one line, without its markup."""
    return re.sub(r":\w+:`~?|`+", "", " ".join((text or "").split()))
