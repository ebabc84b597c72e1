"""``osr report``: a run's ``report.html`` again, from its saved files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from osr_lightning.cli.arguments import CommandParser, parse, run_folder
from osr_lightning.evaluation.report.write import write_report


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser("osr report", description="Write report.html of run folders again.")
    parser.add_argument("run", nargs="+", help="a run folder, such as lightning_logs/NAME/version_0")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: for a mistake in the options, or a folder that is of no finished run.
    """
    for run_dir in map(run_folder, parse(build_parser(), arguments).run):
        print(write_report(run_dir))
