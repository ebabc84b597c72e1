"""Tables on the console, that at the end of a test run among them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osr_lightning.errors import one_line
from osr_lightning.evaluation.report.render import percent
from osr_lightning.evaluation.run_results import summary_heads, summary_rows, threshold_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MOST_CLASSES = 20  # that are named on the console; the report has all


def print_summary(results: dict[str, Any], folder: Path | None, *, tensorboard: bool = True) -> None:
    """Print the headline numbers of ``results.json`` and where everything is.

    Args:
        results: the content of that file.
        folder: of the run; None where nothing was written.
        tensorboard: whether the folder holds what TensorBoard shows.
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False, soft_wrap=True)  # names may hold brackets
    title = results["experiment"] if folder is None else f"{results['experiment']} ({folder})"
    table = new_table(console, *summary_heads(results), title=title)
    for row in summary_rows(results):
        table.add_row(*map(one_line, row.cells), style="bold" if row.total else "")
    console.print(table, soft_wrap=False)
    classes = results["closed_set"].get("per_class") or {}
    if 0 < len(classes) <= MOST_CLASSES:
        each = (f"{name} {percent(numbers['accuracy'])}" for name, numbers in classes.items())
        console.print(one_line(f"by class, none rejected: {', '.join(each)}"))
    if left_out := results.get("left_out"):
        console.print(one_line(left_out_line(left_out)))
    console.print(threshold_line(results))
    if results["threshold"]["optimistic"]:
        console.print(
            "optimistic: test images chose this threshold, so the accuracies above flatter it",
            style="bold yellow",
        )
    for warning in results.get("warnings", ()):
        console.print(one_line(f"warning: {warning}"), style="bold yellow", highlight=True)
    if folder is not None:
        console.print(f"run folder   {folder}")
    console.print(f"checkpoint   {results['checkpoint']}")
    if folder is not None:
        console.print(f"report       {folder / 'report.html'}")
        if tensorboard:
            console.print(f"TensorBoard  tensorboard --logdir {shlex.quote(str(folder.parent))}")


def left_out_line(left_out: dict[str, Any]) -> str:
    """What would become of a class that was never met.

    Args:
        left_out: of ``results.json``.
    """
    found = left_out["classes"]
    each = ""
    if len(found) <= MOST_CLASSES:
        each = ": " + ", ".join(f"{name} {numbers['rejected']:.0%}" for name, numbers in found.items())
    return (
        f"of a class never met {left_out['rejected']:.0%} would be rejected, AUROC {left_out['auroc']:.2f}, "
        f"by leaving out each known one{each}"
    )


NARROW = 60  # columns, below which lines between cells cost too much


def new_table(console: Console, *titles: str, title: str | None = None) -> Table:
    """A table whose cells are never cut off: what does not fit goes on below.

    Args:
        console: that will print it.
        titles: of the columns.
        title: of the table.
    """
    from rich.box import HEAVY_HEAD
    from rich.table import Table

    narrow = console.width < NARROW
    table = Table(
        title=title, box=None if narrow else HEAVY_HEAD, pad_edge=not narrow, collapse_padding=narrow
    )
    for name in titles:
        table.add_column(name, overflow="fold")
    return table
