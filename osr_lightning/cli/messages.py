"""What the parser says of a mistake, in one sentence with the nearest valid names."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from osr_lightning.cli.arguments import nearest

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list, as [a, b]",
    "dict": "a mapping, as {name: value}",
    "str": "text",
}
_KEY = re.compile(r"\b[Kk]ey \"([^\"]+)\"")
_UNKNOWN = re.compile(
    r"(?:Group '(?P<group>[\w.]+)'|Subcommand '\w+') does not accept option '(?P<option>[^']+)'"
    r"|Option '(?P<own>[^']+)' is not accepted"
)
_VALUE = re.compile(r"(?:Got value|Given value): (.*)")
_IMPORT = re.compile(r"(No module named '[^']+'|module '[^']+' has no attribute '[^']+')")


def sentence(
    message: str, arguments: Sequence[str], options: Iterable[str], classes: Callable[[str], Iterable[str]]
) -> str:
    """One sentence for what the parser refused.

    Args:
        message: the parser's, of several lines.
        arguments: of the command line.
        options: that there are, without dashes.
        classes: by option, names of the classes that it takes, if any.
    """
    options = list(options)
    if found := re.match(r"[Uu]nrecognized arguments: (\S+)", message):
        word = found[1]
        if not word.startswith("--"):
            return f"{word!r} belongs to no option: an option is --NAME VALUE, and its value one word"
        return _no_option(word[2:].partition("=")[0], options, "")
    if found := re.match(r"argument --(\S+): expected (?:one|at least one) argument", message):
        return f"{found[1]} lacks its value: --{found[1]} VALUE"
    keys = _KEY.findall(message)
    if found := re.search(r"File does not exist: '?([^'\n]+)", message):
        return f"{'.'.join(keys)}: there is no file {found[1]}"
    if found := _UNKNOWN.search(message):
        name = ".".join([*keys, *filter(None, found.group("group", "option", "own"))])
        return _no_option(name, options, _origin(name, arguments))
    if "class_path" in message and (found := _IMPORT.search(message)):
        return f"a class path cannot be imported: {found[0]}"
    value = _VALUE.search(message)
    if not keys or value is None:
        return " ".join(message.split())  # a YAML that cannot be read, and what else there may be
    name, given = ".".join(keys), value[1]
    start = f"{_origin(name, arguments)}{name}"
    inner = message[message.rindex(f'"{keys[-1]}"') : value.start()].partition("Given value type")[0]
    if names := [*_literals(inner), *(classes(name) if "import path" in inner else [])]:
        return f"{start}: there is no {given!r}; {nearest(given, names)}"
    kinds = [_KINDS[kind] for kind in re.findall(r"<class '(\w+)'>", inner) if kind in _KINDS]
    if not kinds:
        return f"{start} does not take {given!r}: {' '.join(message.split())}"
    return f"{start} must be {' or '.join(dict.fromkeys(kinds))}, got {given!r}"


def _no_option(name: str, options: Sequence[str], origin: str) -> str:
    section, dot, own = name.rpartition(".")
    inside = [option.rpartition(".")[2] for option in options if dot and option.rpartition(".")[0] == section]
    if inside:
        found, close = f"no option {own} of {section}", nearest(own, inside)
    else:
        found, close = f"no option {name}", nearest(name, options)
    if not inside and "did you mean" not in close:
        close = "see --help-all"
    return f"{origin}there is {found}; {close}"


def _literals(text: str) -> list[str]:
    found = re.findall(r"Literal(\[[^]]*\])", text)
    return list(dict.fromkeys(str(value) for values in found for value in ast.literal_eval(values)))


def _origin(name: str, arguments: Sequence[str]) -> str:
    """The file that holds an option which the command line does not, as the beginning of a sentence."""
    words = [word.partition("=")[0] for word in arguments]
    if any(word == f"--{name}" or name.startswith(f"{word[2:]}.") for word in words if word[:2] == "--"):
        return ""
    own = re.compile(rf"\b{re.escape(name.rpartition('.')[2])}\b")
    files = [Path(word.rpartition("=")[2]) for word in arguments if word.endswith((".yaml", ".yml", ".json"))]
    holding = [str(file) for file in files if file.is_file() and own.search(file.read_text(encoding="utf-8"))]
    return f"{' or '.join(holding)}: " if holding else ""
