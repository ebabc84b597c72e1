"""Images per second of `osr predict` on JPEG files, beside decoding and resizing them alone.

Both sides read the same files with the same function and the same threads, and take turns; the table shows
medians. The recogniser is the study's MC-dropout network with random weights, whose time does not depend on
them. With --side the files are enlarged copies, as photographs are larger than CIFAR's images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import torch
from common import Target, enlarge, finish, interleave, new_parser, print_table, start

from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy import predict
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.recogniser.prediction import AT_ONCE
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.recogniser.rows import columns, open_rows


def recogniser() -> Recogniser:
    """The study's network for ten classes; its threshold does not matter here."""
    spec = DataSpec(tuple("0123456789"), 1, 28, (0.1307,), (0.3081,))
    recipe = {"sampler": "mc_dropout", "score": "generalized_entropy", "fixed": 1.0}
    return build(recipe, spec).eval()


def decode_alone(files: list[predict.Image], workers: int, asked: Recogniser) -> int:
    """Read and resize every file; the number of images."""
    parts = [files[i : i + AT_ONCE] for i in range(0, len(files), AT_ONCE)]
    with ThreadPoolExecutor(workers) as pool:
        return sum(len(found) for found in pool.map(partial(predict.read, asked), parts))


@torch.inference_mode()
def predict_all(files: list[predict.Image], workers: int, asked: Recogniser, output: Path) -> int:
    """What the command does after loading the checkpoint; the number of rows."""
    counts = predict.Counts()
    with open_rows(output, columns(asked.score_names, asked.threshold.score)) as sink:
        predict.classify(asked, files, sink, counts, workers=workers)
    return counts.predicted


def timed(work: Callable[[], int]) -> float:
    """Images per second."""
    begin = time.perf_counter()
    return work() / (time.perf_counter() - begin)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "predict", repeats=5)
    parser.add_argument("--files", type=int, default=10_000, help="how many")
    parser.add_argument("--side", type=int, help="pixels a side of the files; as they are if not given")
    parser.add_argument("--workers", type=int, default=2, help="threads that read")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    folder = arguments.data_root / "cifar10" / "test"
    files = list(predict.images([str(folder)]))[: arguments.files]
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.side is not None:
            made = enlarge([file.path for file in files], Path(temporary), arguments.side)
            files = [predict.Image(path, temporary) for path in made]
        asked = recogniser()
        alone = partial(decode_alone, files, arguments.workers, asked)
        whole = partial(predict_all, files, arguments.workers, asked, Path(temporary, "rows.csv"))
        alone(), whole()  # warm-up: files in the system's cache
        sides = {"decode and resize alone": partial(timed, alone), "osr predict": partial(timed, whole)}
        runs = interleave(sides, arguments.repeats)
    medians = {name: median(rates) for name, rates in runs.items()}
    print_table(
        f"{len(files)} JPEG files, {arguments.workers} threads, images per second (median)",
        ["", "images/s"],
        [(name, f"{rate:.0f}") for name, rate in medians.items()],
    )
    ratio = medians["osr predict"] / medians["decode and resize alone"]
    finish(arguments, machine, {"runs": runs}, [Target("predict against decoding alone", ratio, 0.8)])


if __name__ == "__main__":
    main()
