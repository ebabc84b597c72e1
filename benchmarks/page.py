"""Answers of the page of `osr export --page` in Chromium, beside those of `osr predict` for the same files.

Both read the same exported graph and the same image files: the browser decodes, resizes and asks on its
own. The table says how many images are decided otherwise, how far scores and prepared pixels lie apart, and
what one image takes in the browser, with one thread, decoding included. Without PATHs half of the images are
MNIST's test digits (PNG) and half are CIFAR-10's test photographs (JPEG).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Target, finish, new_parser, print_table, start
from serve import OSR, expected_rows, write_images

from osr_lightning import load

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import new_tab

# asks about one file; what the graph was given is made once more
ASK = """(async () => {
  const blob = await (await fetch(%s)).blob();
  const begun = performance.now();
  const { row, error } = await explain(blob, "image");
  const took = performance.now() - begun;
  const planes = error ? [] : Array.from(prepared(await decoded(blob, "image"), model));
  return { row, error, took, planes };
})()"""


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """The address of a static host."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def ask_all(address: str, files: list[Path], profile: Path) -> dict[str, dict[str, Any]]:
    """What the page says of each file."""
    with new_tab(profile) as tab:
        tab.open(f"{address}page/index.html", 1280)
        tab.wait("!!model || !error.hidden")
        return {path.name: tab.js(ASK % json.dumps(f"../images/{path.name}")) for path in files}


def main() -> None:
    """Compare both, and write the result."""
    parser = new_parser(__doc__, "page", None)
    parser.add_argument("--ckpt_path", required=True, help="the checkpoint to export")
    parser.add_argument("--page_runtime", help="the unpacked npm package onnxruntime-web; npm, if not given")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="image files")
    parser.add_argument("--count", type=int, default=200, help="images of both data sets, without PATHs")
    arguments = parser.parse_args()
    machine = start(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        given = ["--page_runtime", arguments.page_runtime] if arguments.page_runtime else []
        command = [*OSR, "export", "--ckpt_path", arguments.ckpt_path, "--page", str(folder / "page"), *given]
        subprocess.run(command, check=True)
        if arguments.images:
            files = [
                Path(shutil.copy(path, folder / "images" / f"{number:05}{Path(path).suffix}"))
                for number, path in enumerate(arguments.images)
            ]
        else:
            files = write_images(arguments.data_root, folder / "images", arguments.count)
        graph = folder / "page" / "model.onnx"
        rows = expected_rows(graph, folder / "images")
        with hosted(folder) as address:
            found = ask_all(address, files, folder / "profile")
        recogniser = load(graph)
        levels = {}
        for path in files:
            assert "error" not in found[path.name], found[path.name]["error"]
            planes = np.array(found[path.name]["planes"]).reshape(recogniser.spec.input_shape)
            levels[path.name] = int(np.abs(planes - recogniser.prepare(path).astype(int)).max())

    def apart(name: str) -> float:
        score = float(rows[name]["score"])
        return abs(found[name]["row"]["score"] - score) / max(1, abs(score))

    otherwise = sum(found[name]["row"]["prediction"] != row["prediction"] for name, row in rows.items())
    same = [name for name, level in levels.items() if level == 0]
    unknown = sum(row["prediction"] == "unknown" for row in rows.values())
    results = {
        "images": len(rows),
        "unknown": unknown,
        "decided otherwise": otherwise,
        "most levels apart": max(levels.values()),
        "images with the same pixels": len(same),
        "score apart, same pixels": max(map(apart, same), default=0.0),
        "score apart": max(map(apart, rows)),
        "milliseconds": median(one["took"] for one in found.values()),
    }
    print_table("In Chromium and by osr predict", ["", ""], [(k, f"{v:.4g}") for k, v in results.items()])
    targets = [
        Target("images decided otherwise", otherwise, 0, at_least=False),
        Target("levels of a pixel", max(levels.values()), 1, at_least=False),
        Target("relative difference of a score", results["score apart, same pixels"], 1e-4, at_least=False),
    ]
    finish(arguments, machine, results, targets)


if __name__ == "__main__":
    main()
