"""``osr compare``: several run folders side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osr_lightning.cli.arguments import CommandParser, parse, run_folder
from osr_lightning.errors import UserError
from osr_lightning.evaluation.compare import compare, print_comparison


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser("osr compare", description="Put finished runs side by side.")
    parser.add_argument("run", nargs="+", help="run folders; the others are measured against the first")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("lightning_logs/comparison"),
        help="folder of comparison.csv and comparison.html (default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: for a mistake in the options, or a folder that is of no finished run.
    """
    options = parse(build_parser(), arguments)
    if options.output.is_file():
        raise UserError(f"--output {options.output} is a file: name a folder")
    print_comparison(compare([*map(run_folder, options.run)], options.output))
    print(options.output / "comparison.html")
