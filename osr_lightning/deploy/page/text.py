"""The page as one file: its markup and style, its script, and the script of whoever answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_HERE = Path(__file__).parent


def page_text(answering: Iterable[Path]) -> str:
    """The page.

    Args:
        answering: scripts that say how an image is asked about.
    """
    scripts = [_read(_HERE / "page.js"), *map(_read, answering)]
    return _read(_HERE / "page.html").replace("@SCRIPT@", "\n" + "".join(scripts) + "\nstart();\n", 1)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
