"""What the report knows of a figure; it travels in the PNG's own text, so that nothing has to draw again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from PIL import Image


class Caption(NamedTuple):
    """One figure's place in the report; without anything known, the last one.

    Attributes:
        order: figures come in ascending order.
        text: what to look for, below the figure.
        wide: whether it needs the page's full width.
        plot: whether it is lines and text on white, whose colours a dark page may turn; pictures are not.
    """

    order: float = math.inf
    text: str = ""
    wide: bool = False
    plot: bool = False

    def metadata(self) -> dict[str, str]:
        """The PNG text that `read_caption` understands, for matplotlib's ``savefig``."""
        flags = {name: "yes" if getattr(self, name) else "no" for name in ("wide", "plot")}
        return {
            "Description": self.text,
            "osr_order": str(self.order),
            **{f"osr_{name}": flag for name, flag in flags.items()},
        }


def read_caption(path: Path) -> Caption:
    """The caption saved in an image file; the empty one where the file is not ours, or damaged."""
    try:
        with Image.open(path) as image:
            saved = image.info
        # files of 0.1 do not say whether they are plots
        wide, plot = saved["osr_wide"] == "yes", saved.get("osr_plot") == "yes"
        return Caption(int(saved["osr_order"]), str(saved["Description"]), wide, plot)
    except Exception:  # PIL raises a dozen kinds on damaged files
        return Caption()
