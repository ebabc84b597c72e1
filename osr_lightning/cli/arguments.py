"""What is checked of the command line before the parser sees it, or beyond what the parser checks."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from osr_lightning.errors import UserError
from osr_lightning.images.ahead import processors
from osr_lightning.yaml_files import ENDINGS, check_yaml

_READ = 8  # names that a sentence has, at most
TRUST = "let the checkpoint import your own code; a network of one's own, which runs its code"


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, the last one if it is given more than once."""
    found = None
    for position, word in enumerate(arguments):
        if word.startswith(f"{option}="):
            found = word.partition("=")[2]
        elif word == option and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def no_command(arguments: Sequence[str], commands: Iterable[str]) -> str:
    """What to say where none of the words is a command."""
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is None:
        return f"a command is missing; there are {', '.join(commands)}"
    return f"there is no command {first!r}; {nearest(first, commands)}"


def nearest(given: str, known: Iterable[str], otherwise: str = "") -> str:
    """The name that was probably meant, or all of them, as the end of a sentence.

    Args:
        given: by the user.
        known: the names.
        otherwise: what to say in place of more names than a person reads; all are named where it is empty.
    """
    known = list(dict.fromkeys(known))
    close = [name for name in known if name.startswith(given)] if given else []
    if not 0 < len(close) <= 3:
        close = difflib.get_close_matches(given, known, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(given, known, n=3, cutoff=0.6)
    if not close and otherwise and len(known) > _READ:
        return otherwise
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"


def check_seed(option: str, seed: int) -> None:
    """Refuse what numpy takes for no seed.

    Raises:
        UserError: naming the option.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"{option} must lie between 0 and {2**32 - 1}, got {seed}")


def check_files(arguments: Sequence[str]) -> None:
    """Refuse configuration files that the parser would misread; see `osr_lightning.yaml_files.check_yaml`.

    Raises:
        UserError: naming the file, and the option and its line.
    """
    for argument in arguments:
        path = Path(argument.rpartition("=")[2] if argument.startswith("-") else argument)
        try:
            if path.suffix.lower() in ENDINGS and path.is_file():
                check_yaml(path)
        except UserError:
            raise
        except (OSError, ValueError):  # the parser says what is wrong with it
            continue


def names(parser: argparse.ArgumentParser) -> list[str]:
    """The names of a parser's options, without dashes."""
    return [word.lstrip("-") for action in parser._actions for word in action.option_strings]


class CommandParser(argparse.ArgumentParser):
    """A parser of one command, which takes no abbreviations and whose mistakes are one sentence.

    Args:
        prog: ``osr`` and the command.
        options: of `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Stop with a sentence.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """What a command with all its options in one parser is given.

    Args:
        parser: without abbreviations.
        arguments: of the command line, after the command.

    Raises:
        UserError: for an option that there is not, with the nearest one.
    """
    known = [f"--{name}" for name in names(parser) if len(name) > 1]
    for word in takewhile(lambda word: word != "--", arguments):
        name = word.partition("=")[0]
        if word.startswith("--") and name not in known:
            raise UserError(f"there is no option {name}; {nearest(name, known)}")
    for before, word in zip(["", *arguments], arguments, strict=False):
        if word.startswith("--") and word.endswith("="):
            before, word = word[:-1], ""
        # an empty path would be the working folder
        if not word and before.startswith("--") and before not in ("--allowed_hosts", "--ckpt_path"):
            raise UserError(f"{before} is empty: give it a value, or leave it out")
    return parser.parse_args(arguments)


def run_folder(given: str) -> Path:
    """The path of a run folder that is given.

    Raises:
        UserError: where it is empty, which would be the working folder.
    """
    if not given:
        raise UserError("an empty path names no run folder; name one, as lightning_logs/NAME/version_0")
    return Path(given)


def split_words(
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


def beginning_with(arguments: Sequence[str], prefixes: tuple[str, ...]) -> list[str]:
    """The options that begin in one of these ways, with the words that they own."""
    found: list[str] = []
    wanted = False
    for word in arguments:
        if word.startswith("--"):
            wanted = word.startswith(prefixes)
        if wanted:
            found.append(word)
    return found


# options that several commands with a parser of their own share ---------------------------------------------


def add_checkpoint(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    """Add ``--ckpt_path``."""
    parser.add_argument("--ckpt_path", metavar="CKPT", required=required, help=text)


def add_decision(parser: argparse.ArgumentParser) -> None:
    """Add ``--score`` and ``--threshold``, which decide in place of the checkpoint's."""
    parser.add_argument("--score", help="the score that decides; the checkpoint's if not given")
    parser.add_argument(
        "--threshold", type=float, help="above it an image is unknown; the calibrated one if not given"
    )


def add_machine(parser: argparse.ArgumentParser, threads: str) -> None:
    """Add ``--device`` and ``--workers``, which are ``threads``."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto)")
    parser.add_argument(
        "--workers", type=int, default=processors(8), help=f"{threads} (default: %(default)s)"
    )


def add_name(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add ``--name`` of the folder in lightning_logs."""
    parser.add_argument("--name", help=f"of the folder in lightning_logs; {otherwise} if not given")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust_checkpoint``."""
    parser.add_argument("--trust_checkpoint", action="store_true", help=TRUST)
