"""Options of the types that a signature names: what a parser checks on the command line, for Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from osr_lightning.errors import UserError

_NOUNS = {str: "text", int: "whole number", float: "number", dict: "mapping"}
_LONGEST = 100  # characters of a value that is told


def typed(
    before: str, kind: type, options: Mapping[str, Any], examples: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Options as plain values of the types that the signatures of a class of this package name.

    Numpy's numbers and truths become Python's, which a checkpoint can hold, and a path becomes a text.
    Other types than the plain ones are left unchecked.

    Args:
        before: what stands before an option's name where a user gives it, as ``model.``.
        kind: the class; its bases in this package have their say too.
        options: name -> value, of which those in no such signature are left out.
        examples: name -> what may be given, as it is written in Python.

    Raises:
        UserError: naming the first option of another type.
    """
    package = __name__.partition(".")[0]
    found = {}
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != package or "__init__" not in vars(base):
            continue
        for name, wanted in get_type_hints(base.__init__).items():  # type: ignore[misc]
            if name not in options:
                continue
            try:
                found[name] = _plain(options[name], wanted)
            except TypeError as error:
                got, example = repr(options[name]), (examples or {}).get(name)
                got = got if len(got) <= _LONGEST else f"{got[: _LONGEST - 1]}…"
                way_out = "" if example is None else f", as {example}"
                raise UserError(f"{before}{name} must be {_words(wanted)}{way_out}, got {got}") from error
    return found


def _plain(value: Any, wanted: Any) -> Any:  # noqa: ANN401
    """A value as one of the type that is wanted.

    Raises:
        TypeError: where it is none.
    """
    if getattr(value, "ndim", None) == 0:  # numpy's, or a tensor of one number
        value = value.tolist()
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        for part in parts:
            with suppress(TypeError):
                return _plain(value, part)
    elif origin is Literal:
        if any(type(value) is type(one) and value == one for one in parts):
            return value
    elif origin is list:
        if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
            items = [_plain(one, parts[0]) for one in value]
            return tuple(items) if isinstance(value, tuple) else items
    elif origin is dict:
        if isinstance(value, Mapping):
            return {_plain(key, parts[0]): _plain(one, parts[1]) for key, one in value.items()}
    elif is_dataclass(wanted) and isinstance(value, Mapping):
        fields = get_type_hints(wanted)
        if fields.keys() >= value.keys():
            return {name: _plain(one, fields[name]) for name, one in value.items()}
    elif wanted is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    elif wanted in (int, float):
        if isinstance(value, Integral if wanted is int else Real) and not isinstance(value, bool):
            return value
    elif not isinstance(wanted, type) or isinstance(value, wanted):
        return value
    raise TypeError


def _words(wanted: Any) -> str:  # noqa: ANN401
    """A type in words."""
    *first, last = _alternatives(wanted)
    return f"{', '.join(first)} or {last}" if first else last


def _alternatives(wanted: Any) -> list[str]:  # noqa: ANN401
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return [word for part in parts for word in _alternatives(part)]
    if origin is Literal:
        return [repr(one) for one in parts]
    if origin is list:
        return [f"a list of {_plural(parts[0])}"]
    if origin is dict:
        return [f"a mapping of {_plural(parts[0])} to {_plural(parts[1])}"]
    if is_dataclass(wanted):
        return [f"a mapping of {', '.join(get_type_hints(wanted))} to numbers"]
    if wanted is bool:
        return ["True", "False"]
    return ["None"] if wanted is NoneType else [f"a {_NOUNS[wanted]}"]


def _plural(wanted: Any) -> str:  # noqa: ANN401
    kinds = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    return " or ".join(f"{_NOUNS[get_origin(kind) or kind]}s" for kind in kinds)
