"""Features of a folder of pictures with nothing in the cache, and what the bare backbone takes.

The pictures are CIFAR-10's test images, in files. *osr* decodes, resizes and keeps features as a run does
before it trains; *bare* is the same backbone in onnxruntime on as many prepared images that are in memory.
Both in wall and in processor seconds: on a machine that does other work only the latter mean something.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from common import Target, finish, new_parser, print_table, start

from osr_lightning import OpenSetDataModule
from osr_lightning.data.cache import cache_folder
from osr_lightning.deploy.onnx_runtime import import_onnxruntime
from osr_lightning.models.backbones import DEFAULT_NAME, Backbone
from osr_lightning.training.backbone import use_backbone

BATCH = 16
SECONDS_OF_10000 = 180.0
OVERHEAD = 1.1


class Took(NamedTuple):
    """Seconds.

    Attributes:
        wall: by the clock.
        processor: of all threads.
    """

    wall: float
    processor: float


def main() -> None:
    parser = new_parser(__doc__, "features", repeats=None)
    parser.add_argument("--pictures", type=int, default=10_000, help="how many, of ten classes")
    parser.add_argument("--backbone", default=DEFAULT_NAME, help="name of the backbone")
    parser.add_argument("--weights", default="DEFAULT", help="its weights")
    parser.add_argument("--views", type=int, default=1, choices=(1, 2), help="of a picture, see Backbone")
    arguments = parser.parse_args()
    machine = start(arguments)
    with TemporaryDirectory() as folder:
        os.environ["OSR_CACHE_DIR"] = str(Path(folder, "cache"))
        known = link(arguments.data_root / "cifar10" / "test", Path(folder, "pictures"), arguments.pictures)
        network = Backbone(10, arguments.backbone, arguments.weights, views=arguments.views)
        whole, bare = measure(network, known, arguments)
    ratio = whole.processor / bare.processor
    print_table(
        f"{arguments.pictures:,} pictures, {arguments.views} views",
        ["", "wall seconds", "processor seconds", "of the bare backbone's"],
        [
            (name, f"{took.wall:.1f}", f"{took.processor:.1f}", f"{took.processor / bare.processor:.2f}")
            for name, took in (("osr", whole), ("bare", bare))
        ],
    )
    of_10000 = whole.wall * 10_000 / arguments.pictures
    finish(
        arguments,
        machine,
        {"osr": whole._asdict(), "bare": bare._asdict()},
        [
            Target("wall seconds of 10,000 pictures", of_10000, SECONDS_OF_10000, at_least=False),
            Target("processor seconds, of the bare backbone's", ratio, OVERHEAD, at_least=False),
        ],
    )


def link(source: Path, target: Path, count: int) -> str:
    """A known source of the first pictures of each class."""
    classes = [one for one in sorted(source.iterdir()) if one.is_dir()]
    for one in classes:
        (target / one.name).mkdir(parents=True)
        for file in sorted(one.iterdir())[: count // len(classes)]:
            (target / one.name / file.name).symlink_to(file.absolute())
    return f"folder:{target}"


def measure(network: Backbone, known: str, arguments: Namespace) -> tuple[Took, Took]:
    """What osr takes, and the backbone alone."""
    tables = OpenSetDataModule(known=known).tables
    use_backbone(network, None, tables)
    extractor = tables.extractor
    assert extractor is not None
    extractor.begin(10_000)  # for so many the backbone is exported, once in the life of a cache
    whole = timed(lambda: (tables.load_training(), tables.load_test()))
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    graph = str(cache_folder() / "backbones" / f"{extractor.key}.onnx")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    assert tables.pixel_format is not None
    size = tables.pixel_format.image_size
    images = np.random.default_rng(0).normal(size=(BATCH, 3, size, size)).astype(np.float32)
    session.run(None, {"images": images})

    def run() -> None:
        for _ in range(-(-arguments.pictures // BATCH)):
            session.run(None, {"images": images})

    return whole, timed(run)


def timed(work: Callable[[], object]) -> Took:
    """How long something takes."""
    began, processor = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - began, time.process_time() - processor)


if __name__ == "__main__":
    main()
