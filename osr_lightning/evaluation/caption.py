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
    """

    order: float = math.inf
    text: str = ""
    wide: bool = False

    def metadata(self) -> dict[str, str]:
        """The PNG text that :func:`read_caption` understands, for matplotlib's ``savefig``."""
        wide = "yes" if self.wide else "no"
        return {"Description": self.text, "osr_order": str(self.order), "osr_wide": wide}


def read_caption(path: Path) -> Caption:
    """The caption saved in an image file; the empty one where the file is not ours, or damaged."""
    try:
        with Image.open(path) as image:
            saved = image.info
        return Caption(int(saved["osr_order"]), str(saved["Description"]), saved["osr_wide"] == "yes")
    except Exception:  # PIL raises a dozen kinds on damaged files
        return Caption()
