"""Images per second of a folder that does not fit in memory: decoding alone, and what a loader brings.

The files are enlarged copies of CIFAR-10's test images. The loader serves shuffled batches of 64, as in
training, with no network behind it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import Target, enlarge, finish, interleave, new_parser, print_table, start
from torch.utils.data import DataLoader

from osr_lightning.data.folder import read_images
from osr_lightning.data.image_table import ImageTable, whole_batch
from osr_lightning.data.sources import load_source
from osr_lightning.data.stream import StreamedImages

SIZE = 224


def decode(files: list[Path]) -> float:
    """Images per second of reading and resizing alone, on all threads."""
    begin = time.perf_counter()
    for start_ in range(0, len(files), 256):
        read_images(files[start_ : start_ + 256], size=SIZE, channels=3)
    return len(files) / (time.perf_counter() - begin)


def serve(images: StreamedImages, workers: int) -> float:
    """Images per second of a loader, its start-up included."""
    zeros = torch.zeros(len(images), dtype=torch.int64)
    table = ImageTable(images, zeros, zeros)
    loader = DataLoader(table, 64, shuffle=True, num_workers=workers, collate_fn=whole_batch)
    begin = time.perf_counter()
    for _ in loader:
        pass
    return len(images) / (time.perf_counter() - begin)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "streaming", repeats=3)
    parser.add_argument("--files", type=int, default=3000, help="how many")
    parser.add_argument("--side", type=int, default=500, help="pixels a side of the files")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4], help="loader processes")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["OSR_CACHE_DIR"] = f"{temporary}/cache"
        folder = Path(temporary, "files")
        (folder / "one").mkdir(parents=True)
        source = sorted((arguments.data_root / "cifar10" / "test").glob("*/*.jpg"))[: arguments.files]
        files = enlarge(source, folder / "one", arguments.side)
        raw = StreamedImages(files, partial(read_images, size=SIZE, channels=3), (3, SIZE, SIZE))
        begin = time.perf_counter()
        cached = load_source(
            f"folder:{folder}", "train", root=folder, size=SIZE, channels=3, memory_limit=0
        ).images
        once = len(files) / (time.perf_counter() - begin)
        assert isinstance(cached, StreamedImages)
        sides = {"decode and resize alone": partial(decode, files)}
        for workers in arguments.workers:
            sides[f"loader that decodes, {workers} workers"] = partial(serve, raw, workers)
            sides[f"loader from the cache, {workers} workers"] = partial(serve, cached, workers)
        runs = interleave(sides, arguments.repeats)
    medians = {name: median(rates) for name, rates in runs.items()}
    medians["resizing once into the cache"] = once
    print_table(
        f"{len(files)} JPEG files of {arguments.side} pixels to {SIZE}, images per second (median)",
        ["", "images/s"],
        [(name, f"{rate:.0f}") for name, rate in medians.items()],
    )
    alone = medians["decode and resize alone"]
    decoding = max(rate for name, rate in medians.items() if "that decodes" in name)
    targets = [Target("loader that decodes against decoding alone", decoding / alone, 0.8)]
    finish(arguments, machine, {"runs": runs, "once": once}, targets)


if __name__ == "__main__":
    main()
