"""What the benchmarks share: options, the machine, interleaved repeats, tables and JSON."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from osr_lightning.__main__ import main as osr

T = TypeVar("T")
PRETRAINED = "With a pretrained backbone"  # the section of docs/results.md that photos.py writes
OTHERS_CODE = "The same numbers as others' code"  # which others_code.py writes
SCRATCH = "Networks from scratch: Fashion-MNIST and CIFAR-10"  # which recipes.py writes
PRETRAINED_SPLITS = "CIFAR-10's published splits with a pretrained backbone"  # as well
QUIET = (
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--evaluation.figures=false",
    "--evaluation.projector_points=0",
)
# tables keep their width when the output goes to a file
console = Console(width=None if sys.stdout.isatty() else 110)


class Target(NamedTuple):
    """A claim, what was measured and what it is to reach."""

    claim: str
    measured: float
    bound: float
    at_least: bool = True

    @property
    def met(self) -> bool:
        """Whether the measured value reaches the bound."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def new_parser(description: str | None, name: str, repeats: int | None) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; ``--repeats`` only where a default is given."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of MNIST/")
    if repeats is not None:
        parser.add_argument(
            "--repeats", type=int, default=repeats, help="rounds, of which the median is taken"
        )
    parser.add_argument("--threads", type=int, help="torch's threads; torch's own choice if not given")
    results = Path(__file__).parent / "results" / f"{name}.json"
    parser.add_argument("--json", type=Path, default=results, help="results go here")
    return parser


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Set the threads, here and for child processes, and say what machine this is."""
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def cpu_model() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def interleave(sides: dict[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Every side once per round, so that a slow minute of the machine hits all of them."""
    runs: dict[str, list[T]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            runs[name].append(side())
    return runs


def quiet_lightning() -> None:
    """Keep Lightning's remarks out of the tables."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def timed(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def enlarge(files: Sequence[Path], folder: Path, side: int) -> list[Path]:
    """Copies of pictures, of another size."""
    made = [folder / f"{number:05}.jpg" for number in range(len(files))]
    for file, path in zip(files, made, strict=True):
        with Image.open(file) as image:
            image.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    return made


def run_osr(words: list[str]) -> None:
    """Run a command, which must end well."""
    if status := osr(words):
        raise SystemExit(status)


def table_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table of a page."""
    lines = [f"| {' | '.join(header)} |".replace("|  |", "| |", 1), f"|{'---|' * len(header)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def put_section(page: str, title: str, lines: Sequence[str]) -> str:
    """A page with a section of its own, ``## title``, in place of an earlier one or at the end."""
    before, _, rest = f"\n{page}".partition(f"\n## {title}\n")
    after = rest.partition("\n## ")
    parts = [before.strip("\n"), f"## {title}\n\n" + "\n".join(lines).strip("\n")]
    parts += [f"## {after[2].strip(chr(10))}"] if after[1] else []
    return "\n\n".join(part for part in parts if part) + "\n"


def write_section(path: Path, title: str, lines: Sequence[str], new: str = "") -> None:
    """Write a file's section; see `put_section`. Where there is no such file, it begins with ``new``."""
    page = path.read_text(encoding="utf-8") if path.is_file() else new
    path.write_text(put_section(page, title, lines), encoding="utf-8")


def section_of(page: str, title: str) -> list[str]:
    """The lines of a page's section ``## title``; none where there is no such section."""
    rest = f"\n{page}".partition(f"\n## {title}\n")[2]
    return rest.partition("\n## ")[0].strip("\n").split("\n") if rest else []


def finish(
    arguments: argparse.Namespace, machine: dict[str, Any], results: dict[str, Any], targets: list[Target]
) -> None:
    """Print the machine and the targets, and write everything to the JSON file."""
    machine["load_after"] = os.getloadavg()[0]
    console.print(", ".join(f"{key}: {value}" for key, value in machine.items()))
    if targets:
        print_table(
            "Targets",
            ["", "measured", "target", "met"],
            [
                (
                    target.claim,
                    f"{target.measured:.4g}",
                    f"{'at least' if target.at_least else 'at most'} {target.bound:g}",
                    "yes" if target.met else "no",
                )
                for target in targets
            ],
        )
    options = {
        name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()
    }
    ratios = [target._asdict() | {"met": target.met} for target in targets]
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine, "options": options, **results, "targets": ratios}
    arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    console.print(f"Written to {arguments.json}")
