"""The command lines of commands that hand most of their options on to ``osr run``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import takewhile


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str], what: str
) -> tuple[list[str], argparse.Namespace, list[str]]:
    """A command's words before its first option, its own options, and those to hand on in their order.

    Args:
        parser: of its own options, without abbreviations.
        arguments: of the command line.
        what: an example of the words, of which there must be one.
    """
    words = list(takewhile(lambda word: not word.startswith("-"), arguments))
    own, further = parser.parse_known_args(arguments[len(words) :])
    if not words:
        parser.error(f"name {what}")
    return words, own, further


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
