"""Time and peak memory of a test run against images, samples and unknown sets.

Each setting is one `OpenSetTrainer.test` of an MC-dropout network with random weights, in a process of its
own: its peak belongs to it alone. The images are MNIST's and, as unknown sets, FashionMNIST's, repeated with
a little noise and read from npz files. No figures, and a small bootstrap unless --bootstrap says otherwise.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Target, console, finish, interleave, new_parser, print_table, quiet_lightning, start
from torchvision.datasets import MNIST, FashionMNIST

# a known npz holds out about 20% as test, by content: about 500 known test images in every setting
KNOWN_PER_CLASS, KNOWN_TEST = 250, 500
MIB = 2**20


class Setting(NamedTuple):
    """One point of the grid."""

    images: int
    samples: int
    sets: int = 1


SMALL, LARGE = Setting(10_000, 1), Setting(200_000, 200)
IMAGES = [Setting(images, 10) for images in (1_000, 10_000, 50_000, 200_000)]
SAMPLES = [Setting(10_000, samples) for samples in (1, 10, 50, 200, 500)]
SETS = [Setting(10_000, 10, sets) for sets in (1, 2, 4, 8)]
QUICK = [
    Setting(1_000, 10),
    Setting(10_000, 1),
    Setting(10_000, 10),
    Setting(10_000, 50),
    Setting(10_000, 10, 4),
]


def write_images(data_root: Path, folder: Path, setting: Setting) -> None:
    """The npz files of a setting."""
    try:
        known, unknown = (kind(str(data_root), train=False) for kind in (MNIST, FashionMNIST))
    except RuntimeError as error:
        raise SystemExit(f"MNIST or FashionMNIST is missing in {data_root}; give --data-root.") from error
    rows = torch.cat([(known.targets == label).nonzero()[:KNOWN_PER_CLASS, 0] for label in range(10)])
    np.savez(folder / "known.npz", images=known.data[rows].numpy(), labels=known.targets[rows].numpy())
    counts = torch.full((setting.sets,), (setting.images - KNOWN_TEST) // setting.sets)
    counts[0] += setting.images - KNOWN_TEST - counts.sum()
    generator = torch.Generator().manual_seed(0)
    for position, count in enumerate(counts.tolist()):
        # at most 247 + 8: no overflow
        images = unknown.data.clamp(max=247)[torch.randint(len(unknown), (count,), generator=generator)]
        images += torch.randint(9, images.shape, dtype=torch.uint8, generator=generator)
        np.savez(folder / f"unknown_{position}.npz", images=images.numpy())


def peak_memory() -> int:
    """The largest resident size of this process, in bytes."""
    try:
        # Linux counts the parent's pages at the fork in ru_maxrss, but not here
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        # macOS counts bytes, others kilobytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_once(folder: Path, setting: Setting, bootstrap: int) -> dict[str, float]:
    """Run in the child: one test of the folder's images."""
    from osr_lightning.data.datamodule import OpenSetDataModule
    from osr_lightning.training.callbacks.evaluator import Evaluator
    from osr_lightning.training.module import MCDropoutClassifier
    from osr_lightning.training.trainer import OpenSetTrainer

    quiet_lightning()
    torch.manual_seed(0)
    datamodule = OpenSetDataModule(
        known=f"npz:{folder / 'known.npz'}",
        unknown={f"set_{n}": f"npz:{folder / f'unknown_{n}.npz'}" for n in range(setting.sets)},
    )
    evaluator = Evaluator(figures=False, tsne_points=0, projector_points=0, bootstrap=bootstrap)
    trainer = OpenSetTrainer(
        default_root_dir=str(folder), accelerator="cpu", enable_progress_bar=False, callbacks=[evaluator]
    )
    model = MCDropoutClassifier(num_samples=setting.samples)
    model.build(datamodule.spec)
    trainer.calibrate(model, datamodule=datamodule)  # fits the score that decides
    before = peak_memory()
    begin = time.perf_counter()
    trainer.test(model, datamodule=datamodule, verbose=False)
    wall = time.perf_counter() - begin
    assert evaluator.outcome is not None
    table = datamodule.tables.load_test()
    assert abs(len(table) - setting.images) < KNOWN_TEST / 4
    return {
        "test_s": evaluator.outcome[0]["timing"]["test_s"],
        "wall_s": wall,
        "start_bytes": before,
        "peak_bytes": peak_memory(),
        "data_bytes": sum(part.nbytes for part in (table.images, table.labels, table.sources)),
    }


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, float]:
    """One setting in a process of its own, whose last line is its result."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(arguments.data_root, Path(folder), setting)
        command = [sys.executable, __file__, "--child", folder, *map(str, setting)]
        done = subprocess.run(
            [*command, "--bootstrap", str(arguments.bootstrap)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{setting} failed:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    console.print(
        f"{setting.images} images, {setting.samples} samples, {setting.sets} sets: "
        f"{found['wall_s']:.1f} s, {found['peak_bytes'] / MIB:.0f} MiB"
    )
    return found


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "scaling", repeats=1)
    parser.add_argument("--quick", action="store_true", help="five small settings, without the target")
    parser.add_argument("--bootstrap", type=int, default=10, help="resamples; 1000 is osr's default")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)  # folder, images, samples, sets
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        folder, *numbers = arguments.child
        print(json.dumps(test_once(Path(folder), Setting(*map(int, numbers)), arguments.bootstrap)))
        return
    machine = start(arguments)
    sweeps = {"images": IMAGES, "samples": SAMPLES, "unknown sets": SETS, "ends": [SMALL, LARGE]}
    if arguments.quick:
        sweeps = {"quick": QUICK}
    grid = dict.fromkeys(setting for sweep in sweeps.values() for setting in sweep)
    runs = interleave({s: partial(measure, s, arguments) for s in grid}, arguments.repeats)
    medians = {s: {key: median(run[key] for run in found) for key in found[0]} for s, found in runs.items()}

    for name, sweep in sweeps.items():
        print_table(
            f"Test run by {name}, median of {arguments.repeats}",
            [
                "images",
                "samples",
                "unknown sets",
                "passes, s",
                "whole, s",
                "images/s",
                "data, MiB",
                "start, MiB",
                "peak, MiB",
            ],
            [
                (
                    *setting,
                    f"{found['test_s']:.2f}",
                    f"{found['wall_s']:.2f}",
                    f"{setting.images / found['test_s']:.0f}",
                    f"{found['data_bytes'] / MIB:.1f}",
                    f"{found['start_bytes'] / MIB:.0f}",
                    f"{found['peak_bytes'] / MIB:.0f}",
                )
                for setting in sweep
                for found in [medians[setting]]
            ],
        )
    console.print(
        "Passes: network, scores and metrics, whose images/s these are. Whole: also reading, evaluation and "
        "files. Start: the process with the libraries loaded, before it has any image."
    )
    targets = []
    if LARGE in medians:
        large, small = medians[LARGE], medians[SMALL]
        ratio = (large["peak_bytes"] - large["data_bytes"]) / small["peak_bytes"]
        claim = "peak of 200k images, 200 samples, less the data set, against 10k images, 1 sample"
        targets.append(Target(claim, ratio, 1.5, at_least=False))
    settings: list[dict[str, Any]] = [{**s._asdict(), "runs": found} for s, found in runs.items()]
    finish(arguments, machine, {"settings": settings}, targets)


if __name__ == "__main__":
    main()
