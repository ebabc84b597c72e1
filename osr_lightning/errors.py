"""The exceptions that are told in one sentence."""

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

_PACKAGE = re.compile(r"pip install (?:-U )?['\"]?([^'\"`\s]+)")  # as Lightning ends its sentences


class UserError(ValueError):
    """A mistake in what the user gave: an option, a value or a file.

    Its message is one sentence that names the culprit and the way out. The command line prints
    just that sentence and exits with status 2; in Python it is an ordinary ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class NotCalibrated(UserError):
    """A score has no threshold, or no fit, so that nothing can be decided by it.

    Attributes:
        score: its name.
    """

    def __init__(self, message: str, score: str) -> None:
        super().__init__(message)
        self.score = score


class UnreadableImage(UserError):
    """A file that is no image, or a damaged one.

    Attributes:
        why: in a few words.
    """

    def __init__(self, message: str, why: str = "") -> None:  # a worker's error is made again of its text
        super().__init__(message)
        self.why = why


class Failure(RuntimeError):
    """What went wrong without a mistake: a full disk, a loss that is no number.

    Its message is one sentence as well; the command line exits with status 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Diverged(Failure):
    """A training whose loss or weights are no finite numbers."""


def missing_package(error: BaseException) -> str | None:
    """What to install, where an import failed and its error says so."""
    found = _PACKAGE.search(str(error)) if isinstance(error, ImportError) else None
    return None if found is None else found[1]


def missing_module(error: BaseException) -> str | None:
    """What is not installed, where an import of it failed for no other reason."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    name = error.name.partition(".")[0]
    there = sys.modules.get(name) is not None or find_spec(name) is not None
    return None if there else name


def needs(package: str) -> str:
    """The end of a sentence about what needs a package that is missing."""
    return f"needs a package that is not installed: pip install '{package}'"


def did_you_mean(
    given: object, known: Iterable[str], otherwise: str, shown: Callable[[str], str] = str
) -> str:
    """The end of a sentence: the name that was probably meant, if one is near, and what else there is."""
    close = difflib.get_close_matches(str(given), list(known), n=1)
    if not close:
        return otherwise
    return f"did you mean {shown(close[0])}? {otherwise[:1].upper()}{otherwise[1:]}"


def check_range(
    before: str, options: Mapping[str, Any], name: str, holds: Callable[[float], bool], range_: str
) -> None:
    """Refuse an option where its value, if it has one, is out of the range as named.

    Args:
        before: what stands before its name where a user gives it: ``model.``, or ``--`` of a command's own.
        options: name -> value.
        name: of the option.
        holds: whether a value is in the range.
        range_: what the value must do, in words.

    Raises:
        UserError: naming the option.
    """
    value = options.get(name)
    if value is not None and not holds(value):
        raise UserError(f"{before}{name} must {range_}, got {value}")


def one_line(text: str) -> str:
    """Text whose control characters and lone surrogates are written with backslashes.

    Names of files and classes may hold any: they would break lines and tables, or command a terminal.
    """
    return "".join(
        char.encode("unicode_escape").decode() if not char.isprintable() and char != " " else char
        for char in text
    )
