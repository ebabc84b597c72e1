"""The command lines of commands that hand most of their options on to ``osr run``."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def split_arguments(arguments: Sequence[str], own: Collection[str]) -> tuple[list[str], list[str]]:
    """A command's own arguments, and those to hand on.

    An option owns the words that follow it up to the next option; the words before the first option are the
    command's own.

    Args:
        arguments: of the command line.
        own: the options of the command, as ``--seeds``.
    """
    mine: list[str] = []
    further: list[str] = []
    target = mine
    for word in arguments:
        if word.startswith("--") or word == "-h":
            target = mine if word.partition("=")[0] in own else further
        target.append(word)
    return mine, further


def options_of(arguments: Sequence[str], prefixes: tuple[str, ...]) -> list[str]:
    """The options that begin in one of these ways, with the words that they own."""
    found: list[str] = []
    wanted = False
    for word in arguments:
        if word.startswith("--"):
            wanted = word.startswith(prefixes)
        if wanted:
            found.append(word)
    return found


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, the last one if it is given more than once."""
    found = None
    for position, word in enumerate(arguments):
        if word.startswith(f"{option}="):
            found = word.partition("=")[2]
        elif word == option and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found
