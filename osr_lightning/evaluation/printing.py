"""Tables on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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
