"""Requests per second and latencies of `osr serve` with 1, 16 and 64 clients, with and without batches.

Every request carries one image file: MNIST test images as PNG and CIFAR-10's JPEG files, in turns. Both
servers are commands of their own, on the same checkpoint or exported graph; that without batches is `osr
serve --batch 1 --wait_ms 0`, a loop over images. Every answer is compared with the row of `osr predict` for
the same file. Clients keep their connections open, and share the machine with the server.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from common import Target, finish, interleave, new_parser, print_table, start
from PIL import Image
from torchvision.datasets import MNIST

OSR = [sys.executable, "-m", "osr_lightning"]
SIDES = {"batches": [], "no batches": ["--batch", "1", "--wait_ms", "0"]}


def write_images(root: Path, folder: Path, count: int) -> list[Path]:
    """Files of both data sets, in turns."""
    digits = []
    for number, image in enumerate(MNIST(str(root), train=False).data[: count // 2].numpy()):
        digits.append(folder / f"{number:05}.png")
        Image.fromarray(image).save(digits[-1])
    photos = []
    for path in itertools.islice(sorted((root / "cifar10" / "test").rglob("*.jpg")), count // 2):
        photos.append(folder / f"{len(photos):05}.jpg")
        photos[-1].write_bytes(path.read_bytes())
    return [path for pair in zip(digits, photos, strict=True) for path in pair]


def expected_rows(checkpoint: str | Path, folder: Path) -> dict[str, dict[str, str]]:
    """The rows of `osr predict` by file."""
    output = folder / "rows.csv"
    command = [*OSR, "predict", "--ckpt_path", str(checkpoint), str(folder), "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    with output.open(newline="") as file:
        return {Path(row["file"]).name: row for row in csv.DictReader(file)}


@contextmanager
def server(checkpoint: str, options: list[str]) -> Iterator[int]:
    """A server's port; it is ended by SIGTERM and must end well."""
    command = [*OSR, "serve", "--ckpt_path", checkpoint, "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = re.search(r"http://[^:]+:(\d+)/", process.stderr.readline())
        if found is None:
            raise SystemExit("osr serve did not start: " + process.stderr.read())
        yield int(found[1])
        process.terminate()
        if process.wait(60):
            raise SystemExit(f"osr serve ended with {process.returncode}")


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, dict[str, Any]]:
    """One request on an open connection; status and content."""
    writer.write(b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert length is not None
    return int(head.split()[1]), json.loads(await reader.readexactly(int(length[1])))


def same(row: dict[str, Any], wanted: dict[str, str]) -> bool:
    """Whether two answers are one; scores are equal to rounding in other batches."""
    score = float(wanted["score"])
    return row["prediction"] == wanted["prediction"] and abs(row["score"] - score) <= 1e-4 * max(
        1, abs(score)
    )


async def load(
    port: int, clients: int, requests: int, files: list[Path], rows: dict[str, dict[str, str]]
) -> dict[str, float]:
    """Ask with so many clients at once; what became of it."""
    bodies = [path.read_bytes() for path in files]
    numbers = iter(range(requests))
    seconds, lost, otherwise = [], 0, 0

    async def client() -> None:
        nonlocal lost, otherwise
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            which = number % len(files)
            begun = time.perf_counter()
            status, content = await ask(reader, writer, bodies[which])
            seconds.append(time.perf_counter() - begun)
            if status != 200:
                lost += 1
            elif not same(content["rows"][0], rows[files[which].name]):
                otherwise += 1
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    took = time.perf_counter() - begun
    return {
        "requests": requests,
        "per_second": requests / took,
        "median_ms": median(seconds) * 1e3,
        "p99_ms": quantiles(seconds, n=100)[-1] * 1e3,
        "lost": requests - len(seconds) + lost,
        "answered_otherwise": otherwise,
    }


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "serve", repeats=3)
    parser.add_argument("--ckpt_path", required=True, help="a checkpoint or an .onnx file that learned MNIST")
    parser.add_argument("--requests", type=int, default=10_000, help="of all clients, each round")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 64], help="at once")
    parser.add_argument("--files", type=int, default=800, help="different images")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_images(arguments.data_root, folder, arguments.files)
        rows = expected_rows(arguments.ckpt_path, folder)

        def measure(clients: int, options: list[str]) -> dict[str, float]:
            with server(arguments.ckpt_path, options) as port:
                asyncio.run(load(port, clients, min(500, arguments.requests), files, rows))  # warm-up
                return asyncio.run(load(port, clients, arguments.requests, files, rows))

        for clients in arguments.clients:
            sides = {name: partial(measure, clients, options) for name, options in SIDES.items()}
            runs = interleave(sides, arguments.repeats)
            results[str(clients)] = {
                name: {
                    key: (sum if key in ("lost", "answered_otherwise", "requests") else median)(
                        [run[key] for run in found]
                    )
                    for key in found[0]
                }
                for name, found in runs.items()
            }
    print_table(
        f"{arguments.ckpt_path}, requests of one image (medians; counts of all rounds)",
        ["clients", "server", "requests/s", "median ms", "99% ms", "requests", "lost", "answered otherwise"],
        [
            [
                clients,
                name,
                *(f"{found[key]:.{digits}f}" for key, digits in _COLUMNS),
            ]
            for clients, by_side in results.items()
            for name, found in by_side.items()
        ],
    )
    every = [found for by_side in results.values() for found in by_side.values()]
    finish(
        arguments,
        machine,
        {"clients": results},
        [
            Target("requests lost", sum(found["lost"] for found in every), 0, at_least=False),
            Target(
                "answers unlike osr predict", sum(found["answered_otherwise"] for found in every), 0, False
            ),
        ],
    )


_COLUMNS = (
    ("per_second", 0),
    ("median_ms", 1),
    ("p99_ms", 1),
    ("requests", 0),
    ("lost", 0),
    ("answered_otherwise", 0),
)


if __name__ == "__main__":
    main()
