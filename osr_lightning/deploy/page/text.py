"""The page as one file: its markup and style, its script, that of whoever answers, and what it is told."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osr_lightning.recogniser.examples import data_url, to_png
from osr_lightning.recogniser.prediction import Answering
from osr_lightning.recogniser.rows import class_cells

_HERE = Path(__file__).parent


def page_text(answering: Iterable[Path]) -> str:
    """The page.

    Args:
        answering: scripts that say how an image is asked about.
    """
    scripts = [_read(_HERE / "page.js"), *map(_read, answering)]
    return styled(_HERE / "page.html").replace("@SCRIPT@", "\n" + "".join(scripts) + "\nstart();\n", 1)


def styled(page: Path) -> str:
    """A page's markup with the style that all pages share before its own."""
    return _read(page).replace("@STYLE@", _read(_HERE / "style.css"), 1)


def told_of(recogniser: Answering) -> dict[str, Any]:
    """What the page says of its recogniser, as JSON's values; examples are pictures as PNG."""
    spec, examples = recogniser.spec, recogniser.examples
    names = class_cells(spec.classes)
    return {
        "classes": names,
        "examples": [
            {"class": name, "picture": data_url(to_png(examples[own]))}
            for own, name in zip(spec.classes, names, strict=True)
            if own in examples
        ],
        "channels": spec.channels,
        "image_size": spec.image_size,
        "score": recogniser.threshold.score,
        "threshold": recogniser.threshold.value,
    }


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
