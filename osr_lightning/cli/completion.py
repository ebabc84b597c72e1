"""``osr completion``: a shell's completion of commands, options and the values that are few."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

import shtab

from osr_lightning.cli.arguments import CommandParser, parse
from osr_lightning.cli.main import COMMANDS, OWN
from osr_lightning.cli.options import Option, names_of, options_of

# the trainer's methods whose options these commands take beside their own
_METHODS = {"predict": "predict", "study": "run", "search": "run", "wrap": "run", "ensemble": "calibrate"}
_PATHS = {
    **dict.fromkeys(
        ("config", "ckpt_path", "output", "json", "space", "paths", "predictions", "weights", "classes"),
        shtab.FILE,
    ),
    **dict.fromkeys(("data.root", "trainer.default_root_dir", "run", "known", "unknown"), shtab.DIRECTORY),
}


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser(
        "osr completion",
        description="Print a script that completes commands, options and values. For bash: "
        "osr completion bash > ~/.local/share/bash-completion/completions/osr; for zsh: into a file _osr in "
        "a folder of $fpath. Print it again after an update.",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Print the script.

    Args:
        arguments: of the command line, after ``completion``.
    """
    print(shtab.complete(_osr(), parse(build_parser(), arguments).shell))


def _osr() -> argparse.ArgumentParser:
    """Every command and option for shtab; it parses nothing."""
    own = {name: import_module(f"osr_lightning.cli.{name}").build_parser() for name in OWN}
    for name in ("study", "ensemble"):  # whose words are split off before the parser sees them
        own[name].add_argument("paths", nargs="+")
    osr = argparse.ArgumentParser("osr", add_help=False)
    added = osr.add_subparsers()
    for name in COMMANDS:
        parents = [own[name]] if name in own else []
        parser = added.add_parser(name, parents=parents, conflict_handler="resolve", help="")
        method = _METHODS.get(name, "" if name in own else name)
        for option, about in options_of(method).items() if method else ():
            if f"--{option}" not in parser._option_string_actions:
                _add(parser, option, about)
        for action in parser._actions:
            if (path := _PATHS.get(action.dest)) is not None:
                action.complete = path  # type: ignore[attr-defined]
    return osr


def _add(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    values = list(dict.fromkeys([*option.choices, *names_of(name)]))
    text = option.clause.replace("%", "%%")
    if option.hint is None:
        parser.add_argument(f"--{name}", action="store_true", help=text)
    else:
        parser.add_argument(f"--{name}", dest=name, choices=values or None, help=text)
