"""What is wrong with the options of a command, in one sentence with the nearest valid names.

Names are compared with the table of options before the parser sees them. Of what the parser then refuses, its
message says which option that is, and what a class cannot be built without; nothing else is read from it.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from osr_lightning.cli.arguments import nearest
from osr_lightning.cli.config_loader import MODE, load
from osr_lightning.cli.options import (
    WITH_CLASSES,
    Option,
    class_named,
    classes_of,
    find_class,
    kinds_of,
    options_of,
    parameters,
)
from osr_lightning.errors import UserError
from osr_lightning.models.factory import find
from osr_lightning.training.module import CLASSIFIERS

_GROUPS = ("model", "data", "evaluation", "trainer")
_UNLISTED = ("weights_only", "trainer.verbose")  # in a saved config: Lightning's, and what --verbose sets
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list, as [a, b]",
    Sequence: "a list, as [a, b]",
    tuple: "a list, as [a, b]",
    dict: "a mapping, as {name: value}",
    str: "text",
    Callable: "the path of a function, as my_module.my_function",
}
# what a list or a mapping may hold, and how one begins
_ITEMS = {int: "whole numbers", float: "numbers", str: "texts", dict: "mappings"}
_TIGHT = re.compile(r"[{,]\s*[^\s:,{}]+:[^\s/]")  # a name and its value without a space between them
_HOLDERS = {list: ("[", "a list of"), Sequence: ("[", "a list of"), dict: ("{", "a mapping of names to")}
_SUCH_AS = {  # a class of an option, for sentences
    "optimizer": "Adam",
    "lr_scheduler": "StepLR",
    "trainer.logger": "CSVLogger",
    "trainer.callbacks": "EarlyStopping",
}
_ELSEWHERE = "see --help-all"
_LACKS = object()  # the value of an option without one
_KEY = re.compile(r"\b[Kk]ey \"([^\"]+)\"")  # of jsonargparse's messages, the outermost first


class Given(NamedTuple):
    """An option as it is given.

    Attributes:
        name: as in the table of options.
        value: text on the command line, of any type in a file.
        file: that holds it; None for the command line.
    """

    name: str
    value: Any
    file: Path | None = None

    @property
    def where(self) -> str:
        """The file that holds it, as the beginning of a sentence."""
        return "" if self.file is None else f"{self.file}: "

    @property
    def is_class(self) -> bool:
        """Whether a class is named, where an option takes one, or perhaps true, false or null."""
        return isinstance(self.value, str) and self.value not in ("true", "false", "null")


def read_options(command: str, words: Sequence[str], further: Collection[str] = ()) -> list[Given]:
    """All options of a command line and of the files that it names.

    Args:
        command: a method of the trainer.
        words: those after the command.
        further: options that there are beside the command's.

    Raises:
        UserError: for a name that there is not, a value that lacks, a word that belongs to no option, or a
            file that there is not.
    """
    found = []
    options = options_of(command)
    for one in _given(words, options):
        if one.name == "model" and isinstance(one.value, str):
            options = options_of(command, _classifier(one))
        if (parts := _parts(one.name, options)) and one.name not in parts:
            raise UserError(f"{one.where}{_no_option(one.name, [*parts])}")
        if (whole := _list_above(one.name, options)) is not None:
            raise UserError(f"{one.where}{whole} is given as a whole: --{whole} '[A, B]'")
        if not _is_known(one.name, options):
            raise UserError(f"{one.where}{_no_option(one.name, [*options, *further], options)}")
        if one.value is _LACKS:
            raise UserError(f"{one.name} lacks its value: --{one.name} VALUE")
        found.append(one)
    return found


def sentence(message: str, given: Sequence[Given], command: str) -> str:
    """One sentence for what the parser refused.

    Args:
        message: the parser's, of several lines.
        given: all options.
        command: a method of the trainer.
    """
    if lacks := _lacking(message):
        return lacks
    names = [one.name for one in given]
    for option in ("optimizer", "lr_scheduler"):
        early = names[: names.index(option)] if option in names else []
        if before := [name for name in early if name.startswith(f"{option}.")]:
            return f"{before[0]} stands before --{option}, which it belongs to: name the class first"
    name = ""
    for key in dict.fromkeys(_KEY.findall(message)):
        name = key if not name or key.startswith(f"{name}.") else f"{name}.{key}"
    kinds = [one for one in given if one.name == "model" and isinstance(one.value, str)]
    options = options_of(command, *map(_classifier, kinds[-1:]))
    for one in given:
        part = _parts(one.name, options).get(one.name)
        if part is not None and not fits(one.value, part) and (found := _about_value(one, part)):
            return found
    for option in WITH_CLASSES:
        if f"{name}.".startswith(f"{option}.") and str not in options[option].kinds:
            for kind, arguments in _classes(option, given):
                if found := _about_class(kind, arguments, name):
                    return found
    # the option itself, or else what it is given a part of, or is a part of
    within = [one for one in given if f"{one.name}.".startswith(f"{name}.")]
    around = [one for one in given if name.startswith(f"{one.name}.")]
    if name and (within or around):
        one = (within or around)[-1]
        if one.name == name and name in options and (found := _about_value(one, options[name])):
            return found
        if one.name.startswith(f"{name}.") and not any(kind.name == name and kind.is_class for kind in given):
            return (
                f"{one.where}{one.name} is an option of a class, and none is named: put --{name} "
                f"{_SUCH_AS.get(name, 'NAME')}, or another's name, before it"
            )
        return f"{one.where}{one.name} does not take {str(one.value)!r}: {' '.join(message.split())}"
    return " ".join(message.split())  # what else there may be


def _classifier(given: Given) -> type[Any]:
    try:
        return find_class(given.value, CLASSIFIERS)
    except UserError as error:
        raise UserError(f"{given.where}{error}") from error


def _given(words: Sequence[str], options: Mapping[str, Option]) -> Iterator[Given]:
    """The options of a command line, with those in its files in their places."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word != "-c" and not word.startswith("--"):
            told = "an option is --NAME VALUE, and its value one word"
            raise UserError(f"{word!r} belongs to no option: {told}")
        name, equals, value = word.partition("=")
        name = "config" if name == "-c" else _plain(name[2:])
        if name.endswith(".help"):
            return  # the parser prints that and ends
        if name in options and options[name].hint is None:
            if equals and name != "print_config":
                raise UserError(f"{name} takes no value: it is --{name} alone")
            yield Given(name, value)
        elif not equals and (not rest or rest[0].startswith("--")):
            yield Given(name, _LACKS)
        else:
            value = value if equals else rest.pop(0)
            whole = name in ("config", *_GROUPS) or (name in options and options[name].parts)
            mapping, file = _mapping(value, Path()) if whole else (None, None)
            if mapping is not None:
                yield from _flat("" if name == "config" else name, mapping, file, options)
            elif name in ("config", *_GROUPS[1:]) and value != "-" and not os.path.exists(value):
                raise UserError(f"{name}: there is no file {value}")
            else:
                yield Given(name, value)


def _flat(name: str, value: Any, file: Path | None, options: Mapping[str, Option]) -> Iterator[Given]:  # noqa: ANN401
    """The options in the mapping of a file, or of one word."""
    plain = _plain(name)
    if plain in _GROUPS and isinstance(value, str) and file is not None:
        inner, path = _mapping(value, file.parent)
        value, file = (value, file) if inner is None else (inner, path)
    apart = plain not in options or plain == "model" or options[plain].parts
    if isinstance(value, dict) and value and apart:
        # the class first, as the others are its own
        for key in sorted(value, key=lambda key: key != "class_path"):
            yield from _flat(f"{name}.{key}" if name else str(key), value[key], file, options)
    elif not (plain in _GROUPS and isinstance(value, (dict, type(None)))):
        yield Given(plain, value, file)


def _mapping(text: str, folder: Path) -> tuple[dict[Any, Any] | None, Path | None]:
    """What a YAML file holds, or a word that is a mapping itself; None for what the parser is to judge."""
    path = folder / os.path.expanduser(text)
    content = None
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        content = load(path.read_text(encoding="utf-8") if os.path.isfile(path) else text)
    return (content if isinstance(content, dict) else None), (path if os.path.isfile(path) else None)


def _plain(name: str) -> str:
    """An option's name as in the table, without what only a parser needs."""
    return re.sub(r"\.init_args\b|\.class_path$|\+$", "", name)


def _is_known(name: str, options: Mapping[str, Option]) -> bool:
    parts = name.split(".")
    above = [".".join(parts[:count]) for count in range(1, len(parts))]
    return (
        name in (*options, *_GROUPS, *_UNLISTED)
        or "dict_kwargs" in parts
        or any(one in options and one != "model" and options[one].has_parts for one in above)
    )


def _list_above(name: str, options: Mapping[str, Option]) -> str | None:
    """The option that takes a list of plain values and no mapping, if a name is one of its places."""
    whole, dot, _ = name.rpartition(".")
    if not dot or whole not in options or options[whole].parts:
        return None
    held = [
        kind
        for member in (options[whole].hint, *typing.get_args(options[whole].hint))
        if typing.get_origin(member) in (list, tuple, Sequence)
        for kind in kinds_of(typing.get_args(member)[0])
    ]
    return whole if held and {*held} <= {int, float, str} and dict not in options[whole].kinds else None


def _parts(name: str, options: Mapping[str, Option]) -> dict[str, Option]:
    """The parts of the option that a name is a part of, by their whole names; empty where that has none."""
    whole = name.rpartition(".")[0]
    found = options[whole].parts if whole in options else {}
    return {f"{whole}.{part}": option for part, option in found.items()}


def fits(value: Any, option: Option) -> bool:  # noqa: ANN401
    """Whether the parser would take a value for an option."""
    parser = ArgumentParser(exit_on_error=False, parser_mode=MODE)
    parser.add_argument("--value", type=option.hint)
    try:
        if isinstance(value, str):
            parser.parse_args([f"--value={value}"])
        else:
            parser.parse_object({"value": value})
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


def check_network(given: Sequence[Given]) -> None:
    """Refuse arguments that a network does not take, or of none: for the parser they make it another one.

    Raises:
        UserError: naming the first.
    """
    networks = _classes("model.network", given)
    alone = [one for one in given if one.name.startswith("model.network.")]
    if alone and not any(kind.value for kind, _ in networks):
        raise UserError(
            f"{alone[0].where}{alone[0].name} is an option of a network, and none is named: name it, as "
            "--model.network MCDropoutCNN or Backbone"
        )
    named = next((at for at, one in enumerate(given) if one.name == "model.network" and one.value), 0)
    if alone and alone[0].file is None and given.index(alone[0]) < named:
        raise UserError(
            f"{alone[0].name} stands before --model.network, which it belongs to: name the network first"
        )
    for kind, arguments in networks[-1:]:
        taken = _network_options(kind.value) if isinstance(kind.value, str) else {}
        for key, one in arguments.items() if taken else ():
            option = taken.get(key.partition(".")[0])
            if option is None:
                raise UserError(one.where + _no_option(one.name, [f"{kind.name}.{name}" for name in taken]))
            # one without a type takes anything
            wrong = option.hint is not str and "." not in key and not fits(one.value, option)
            if wrong and (told := _about_value(one, option)):
                raise UserError(told)


def _network_options(name: str) -> dict[str, Option]:
    """What a network's class takes; empty where that is not known."""
    try:
        factory: Any = find(name, trust=True)
    except UserError:  # another sentence tells
        return {}
    filled: Collection[str] = ()
    if isinstance(factory, functools.partial):  # a name of torchvision's
        factory, filled = factory.func, factory.keywords
    kinds = {one.kind for one in inspect.signature(factory).parameters.values()}
    if not isinstance(factory, type) or inspect.Parameter.VAR_KEYWORD in kinds:
        return {}
    return {key: option for key, option in parameters(factory).items() if key not in filled}


def _no_option(name: str, options: Sequence[str], table: Mapping[str, Option] | None = None) -> str:
    section, dot, own = name.rpartition(".")
    inside = [option.rpartition(".")[2] for option in options if dot and option.rpartition(".")[0] == section]
    if inside:
        found, close = f"no option {own} of {section}", nearest(own, inside, _ELSEWHERE)
        # one that the help calls so, as an experiment's name
        clauses = {other: table[f"{section}.{other}"].clause for other in inside} if table else {}
        called = [other for other, clause in clauses.items() if re.search(rf"\b{re.escape(own)}\b", clause)]
        if close == _ELSEWHERE and called:
            close = f"did you mean {' or '.join(called[:2])}? Or {_ELSEWHERE}"
    else:
        found, close = f"no option {name}", nearest(name, options)
    if not inside and "did you mean" not in close:
        close = _ELSEWHERE
    return f"there is {found}; {close}"


def _classes(option: str, given: Sequence[Given]) -> list[tuple[Given, dict[str, Given]]]:
    """The classes that are given for an option, each with its arguments by name."""
    found: list[tuple[Given, dict[str, Given]]] = []
    for one in given:
        if one.name == option:
            value = one.value
            if isinstance(value, str) and value.startswith(("[", "{")):
                with suppress(yaml.YAMLError):
                    value = load(value)
            for item in value if isinstance(value, list) else [value]:
                kind = item if isinstance(item, dict) else {"class_path": item}
                arguments = kind.get("init_args") or {}
                found.append(
                    (
                        Given(option, kind.get("class_path"), one.file),
                        {key: Given(f"{option}.{key}", value, one.file) for key, value in arguments.items()},
                    )
                )
        elif one.name.startswith(f"{option}.") and found:
            found[-1][1][one.name.removeprefix(f"{option}.")] = one
    return found


def _about_class(kind: Given, arguments: Mapping[str, Given], name: str) -> str | None:
    """What is wrong with a class or its arguments, if anything is; ``name`` is the parser's culprit."""
    if not kind.is_class:
        return None
    known = classes_of(kind.name)
    try:
        found = class_named(kind.value, known)
    except ValueError:
        return f"{kind.where}{kind.name}: there is no {kind.value!r}; {nearest(kind.value, known)}"
    except (ImportError, AttributeError) as error:
        return f"{kind.where}{kind.name}: a class path cannot be imported: {error}"
    taken = parameters(found) if isinstance(found, type) else {}
    for key, one in arguments.items():
        if taken and key.partition(".")[0] not in taken:
            return one.where + _no_option(one.name, [f"{kind.name}.{other}" for other in taken])
        if one.name == name and key in taken and (told := _about_value(one, taken[key])):
            return told
    return None


def _about_value(one: Given, option: Option) -> str | None:
    given = str(one.value)
    if option.literals:
        return f"{one.where}{one.name}: there is no {given!r}; {nearest(given, option.literals)}"
    kinds = [_KINDS[kind] for kind in option.kinds if kind in _KINDS]
    way_out = ""
    for member in (option.hint, *typing.get_args(option.hint)):
        begin, what = _HOLDERS.get(typing.get_origin(member), ("", ""))
        if begin and given.startswith(begin):  # it is one, of other things
            held = dict.fromkeys(
                _ITEMS[kind] for kind in kinds_of(typing.get_args(member)[-1]) if kind in _ITEMS
            )
            kinds = [f"{what} {' or '.join(held)}"] if held else kinds
            if begin == "[" and _ITEMS[str] in held:
                way_out = "; put names that look like numbers, truths or null in quotes"
            if begin == "{" and _TIGHT.search(given):
                way_out = "; YAML wants a space after each colon, as in {name: value}"
    return f"{one.where}{one.name} must be {' or '.join(kinds)}, got {given!r}{way_out}" if kinds else None


def _lacking(message: str) -> str | None:
    """What to say where the parser misses what a logger, callback or schedule cannot be built without."""
    option = re.search(r'key "(trainer\.\w+|optimizer|lr_scheduler)"', message)
    found = re.search(r"class_path '(?:\w+\.)*(\w+)':\s+the following arguments are required: (\w+)", message)
    if option is None or found is None:
        return None
    return f"{option[1]} {found[1]} lacks its {found[2]}: add --{option[1]}.{found[2]} VALUE"
