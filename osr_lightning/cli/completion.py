"""``osr completion``: a shell's completion of commands, options and the values that are few."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import shtab

from osr_lightning.cli import drift, export, predict, search, serve, study
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.options import Option, names_of, options_of

_PATHS = {
    **dict.fromkeys(("config", "ckpt_path", "output", "space", "paths", "predictions"), shtab.FILE),
    **dict.fromkeys(("data.root", "trainer.default_root_dir", "run"), shtab.DIRECTORY),
}


def main(arguments: Sequence[str]) -> None:
    """Print the script.

    Args:
        arguments: of the command line, after ``completion``.
    """
    parser = _completion()
    print(shtab.complete(_osr(), parser.parse_args(arguments).shell))


def _completion() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "osr completion",
        description="Print a script that completes commands, options and values. For bash: "
        "osr completion bash > ~/.local/share/bash-completion/completions/osr; for zsh: into a file _osr in "
        "a folder of $fpath. Print it again after an update.",
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def _osr() -> argparse.ArgumentParser:
    """Every command and option for shtab; it parses nothing."""
    folders = argparse.ArgumentParser(add_help=False)
    folders.add_argument("run", nargs="+", help="run folders")
    compare = argparse.ArgumentParser(add_help=False, parents=[folders])
    compare.add_argument("--output", help="folder of comparison.csv and comparison.html")
    checkpoints = argparse.ArgumentParser(add_help=False)
    checkpoints.add_argument("paths", nargs="+", help="checkpoints")
    # a parser of its own, and the trainer's method whose options it takes as well
    commands: dict[str, tuple[argparse.ArgumentParser | None, str | None]] = {
        **{name: (None, name) for name in OpenSetCLI.subcommands()},
        "predict": (predict.build_parser(), "predict"),
        "export": (export.build_parser(), None),
        "serve": (serve.build_parser(), None),
        "drift": (drift.build_parser(), None),
        "study": (study.build_parser(), "run"),
        "search": (search.build_parser(), "run"),
        "ensemble": (checkpoints, "calibrate"),
        "compare": (compare, None),
        "report": (folders, None),
        "completion": (_completion(), None),
    }
    osr = argparse.ArgumentParser("osr", add_help=False)
    added = osr.add_subparsers()
    for name, (own, method) in commands.items():
        parents = [] if own is None else [own]
        parser = added.add_parser(name, parents=parents, conflict_handler="resolve", help="")
        for option, about in options_of(method).items() if method else ():
            if f"--{option}" not in parser._option_string_actions:
                _add(parser, option, about)
        for action in parser._actions:
            if (path := _PATHS.get(action.dest)) is not None:
                action.complete = path  # type: ignore[attr-defined]
    return osr


def _add(parser: argparse.ArgumentParser, name: str, option: Option) -> None:
    values = list(dict.fromkeys([*option.choices, *names_of(name)]))
    text = option.text.partition(". ")[0].replace("%", "%%")
    if option.hint is None:
        parser.add_argument(f"--{name}", action="store_true", help=text)
    else:
        parser.add_argument(f"--{name}", dest=name, choices=values or None, help=text)
