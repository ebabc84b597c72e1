"""The help pages: of a command, of its classifiers and networks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from osr_lightning.cli.help_lines import GROUPS, Line
from osr_lightning.cli.options import (
    Option,
    classes_of,
    classifier,
    find_class,
    options_of,
    parameters,
    summary,
)

WIDTH = 80
_COLUMN = 38  # where a line's text begins
_INTRO = [
    "An option is --NAME VALUE here, and keys in a YAML: `data: {known: mnist}` is",
    "--data.known mnist. [ ] is the default; without, there is none.",
]
_WITH_CLASSES = ("model", "model.network", "optimizer", "lr_scheduler", "trainer.logger", "trainer.callbacks")
_FILLED = ("params", "optimizer")  # arguments that the training gives


def page(command: str, what: str, arguments: Sequence[str]) -> str | None:
    """The help that a command line asks for; None if it asks for none.

    Args:
        command: as in the arguments.
        what: it does, in a line.
        arguments: of the command line.

    Raises:
        UserError: for a class that does not exist.
    """
    for option in _WITH_CLASSES:
        if (at := _position(arguments, f"--{option}.help")) is not None:
            name = arguments[at].partition("=")[2] or next(iter(arguments[at + 1 : at + 2]), "")
            return _class_page(option, command, "" if name.startswith("-") else name, classes_of(option))
    if "--help-all" in arguments:
        return _all_options(command, what)
    if "-h" in arguments or "--help" in arguments:
        return _short_page(command, what, classifier(arguments))
    return None


def _position(arguments: Sequence[str], option: str) -> int | None:
    return next((i for i, word in enumerate(arguments) if word.partition("=")[0] == option), None)


def _short_page(command: str, what: str, kind: type[Any]) -> str:
    options = options_of(command, kind)
    lines = [f"usage: osr {command} [--config FILE] [options]", "", _sentence(what)]
    lines += _INTRO
    for group in GROUPS:
        shown = [line for line in group.lines if line.option in options or line.option == "print_config"]
        if shown and command in (*group.commands, *([] if group.commands else [command])):
            lines += ["", f"{group.heading}:", *(_line(line, options) for line in shown)]
    lines += ["", f"All options, with more to read: osr {command} --help-all"]
    return "\n".join(lines)


def _line(line: Line, options: dict[str, Option]) -> str:
    option = options.get(line.option)
    default = line.unset
    if not default and option is not None and option.default is not None:
        default = _plain(option.default)
    told = f"{line.text} [{default}]" if default else line.text
    return f"{f'  --{line.option} {line.takes}':<{_COLUMN - 1}} {told}"


def _all_options(command: str, what: str) -> str:
    lines = [f"usage: osr {command} [--config FILE] [options]", "", _sentence(what)]
    section = None
    for name, option in options_of(command).items():
        if (found := name.rpartition(".")[0]) != section:
            section = found
            lines.append("")
        lines += _entry(name, option)
    names = ", ".join(f"--{option}.help" for option in _WITH_CLASSES)
    told = textwrap.fill(f"Classes and, with a name, their options: {names}", WIDTH, break_on_hyphens=False)
    lines += ["", told]
    return "\n".join(lines)


def _class_page(option: str, command: str, name: str, known: dict[str, type[Any]]) -> str:
    if name:
        kind = find_class(name, known)
        options = {key: found for key, found in parameters(kind).items() if key not in _FILLED}
        entries = [line for key, found in options.items() for line in _entry(f"{option}.{key}", found)]
        head = textwrap.fill(f"{kind.__name__}: {summary(kind)}", WIDTH)
        return "\n".join([head, "", *entries])
    indent = " " * 22
    lines = [f"For --{option}, beside the path of a class of one's own, as package.Name:", ""]
    for key, kind in known.items():
        lines += textwrap.wrap(f"  {key:<19} {summary(kind)}", WIDTH, subsequent_indent=indent)
    return "\n".join([*lines, "", f"Options of one: osr {command} --{option}.help NAME"])


def _entry(name: str, option: Option) -> list[str]:
    default = "" if option.default is None or option.hint is None else f" [{_plain(option.default)}]"
    head = f"  --{name} {option.takes}".rstrip() + default
    indent = " " * 6
    told = textwrap.wrap(option.text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    return [*textwrap.wrap(head, WIDTH, subsequent_indent=indent, break_on_hyphens=False), *told]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sentence(what: str) -> str:
    return textwrap.fill(f"{what[0].upper()}{what[1:]}.", WIDTH)
