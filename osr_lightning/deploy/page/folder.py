"""The folder of a page that needs no server: the graph, what runs it, what it says, and the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from osr_lightning.atomic_write import as_text, write_bytes, write_text
from osr_lightning.deploy.content_policy import own_sources
from osr_lightning.deploy.onnx_runtime import ExportedRecogniser
from osr_lightning.deploy.page.runtime import BINARY, FILES
from osr_lightning.deploy.page.text import page_text, told_of
from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration
from osr_lightning.scoring.p_values import levels

GRAPH, MODEL, PAGE, RUNTIME = "model.onnx", "model.json", "index.html", "runtime"
_SCRIPTS = ("pixels.js", "png.js", "graph.js", "camera.js")


def check_page_folder(folder: Path) -> None:
    """Refuse a folder that a page cannot be written to.

    Raises:
        UserError: for a file, a folder that holds something, or one in a folder that is not there.
    """
    named = f"--page {as_text(folder)}"
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{named} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{named} is not empty: name a new folder, or empty this one")
    if not folder.absolute().parent.is_dir():
        raise UserError(f"{named}: there is no folder {as_text(folder.absolute().parent)}")


def write_page(folder: Path, runtime: Mapping[str, bytes]) -> None:
    """Write what goes with the graph that lies in the folder; the page itself last.

    Args:
        folder: holds ``GRAPH``.
        runtime: onnxruntime-web's files; see `osr_lightning.deploy.page.runtime.read_runtime`.

    Raises:
        UserError: where the graph is none of ``osr export``.
        Failure: where the disk is full or cannot be written.
    """
    graph = ExportedRecogniser(folder / GRAPH)
    told = told_of(graph) | {
        "resize": graph.spec.resize,
        "interpolation": graph.spec.interpolation,
        "p_values": _p_values(graph.threshold.record),
    }
    sizes = {"graph": (folder / GRAPH).stat().st_size, "runtime": len(runtime[FILES[BINARY]])}
    for name, content in runtime.items():
        write_bytes(folder / RUNTIME / name, content)
    write_text(folder / MODEL, json.dumps({"graph": GRAPH, "bytes": sizes, **told}, allow_nan=False))
    write_text(folder / PAGE, static_text())


def static_text() -> str:
    """The page, which is the same for every recogniser, with its policy in it."""
    text = page_text([Path(__file__).with_name(name) for name in _SCRIPTS])
    script, style = own_sources(text)[1:]
    policy = [
        "default-src 'none'",
        f"{script} 'self' 'wasm-unsafe-eval'",  # onnxruntime-web, and its WebAssembly
        style,
        "img-src data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    meta = f'<meta http-equiv="Content-Security-Policy" content="{escape("; ".join(policy))}">'
    return text.replace('<meta charset="utf-8">\n', f'<meta charset="utf-8">\n{meta}\n', 1)


def _p_values(record: Calibration) -> dict[str, list[float]]:
    """The known scores in ascending order, and the p-value of a score above none, one, … of them."""
    if not record.known_scores:
        return {"known": [], "levels": []}
    most = sys.float_info.max  # JSON has no word for infinity
    known = np.clip(np.sort(record.known_scores), -most, most)
    return {"known": known.tolist(), "levels": levels(record).tolist()}
