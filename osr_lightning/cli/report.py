"""``osr report``: a run's ``report.html`` again, from its saved files."""

from __future__ import annotations

import argparse
from pathlib import Path

from osr_lightning.evaluation.report.write import write_report


def main(arguments: list[str]) -> None:
    """The command ``osr report``.

    Args:
        arguments: those after the command's name.
    """
    parser = argparse.ArgumentParser("osr report", description="Write report.html of run folders again.")
    parser.add_argument(
        "run", nargs="+", type=Path, help="a run folder, such as lightning_logs/NAME/version_0"
    )
    for run_dir in parser.parse_args(arguments).run:
        print(write_report(run_dir))
