"""``osr compare``: several run folders side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from osr_lightning.evaluation.compare import compare, print_comparison


def main(arguments: list[str]) -> None:
    """The command ``osr compare``.

    Args:
        arguments: those after the command's name.
    """
    parser = argparse.ArgumentParser("osr compare", description="Put finished runs side by side.")
    parser.add_argument(
        "run", nargs="+", type=Path, help="run folders; the others are measured against the first"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("lightning_logs/comparison"),
        help="folder of comparison.csv and comparison.html (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    print_comparison(compare(options.run, options.output))
    print(options.output / "comparison.html")
