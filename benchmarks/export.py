"""What an exported graph changes: scores, decisions and AUROC, and how long it and its recogniser take.

Exports a checkpoint to ``.onnx``, as it is and in 8 bits, and asks all three about MNIST's test images and
the unknown sets that are in the data folder. Sides take turns; the times are medians of rounds.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from common import finish, interleave, new_parser, print_table, start, timed
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torchvision.datasets import MNIST, FashionMNIST

from osr_lightning import load
from osr_lightning.deploy.export import TOLERANCE, example_images, export
from osr_lightning.deploy.onnx_runtime import OUTPUTS
from osr_lightning.deploy.predict import images as find_images
from osr_lightning.recogniser.checkpoint import load as load_checkpoint
from osr_lightning.recogniser.recogniser import Recogniser

BATCHES = (1, 16, 128, 1024)
RANGES = 512  # known training images by which the 8-bit graph is quantised


def unknown_sets(root: Path, recogniser: Recogniser) -> dict[str, NDArray[np.uint8]]:
    """The unknown sets of the data folder, prepared."""
    found: dict[str, NDArray[np.uint8]] = {}
    if (root / "FashionMNIST").is_dir():
        found["fashion_mnist"] = FashionMNIST(str(root), train=False).data.numpy()[:, None]
    for path in root.glob("*.npz"):
        images = np.load(path)["images"]
        found[path.stem] = np.stack([recogniser.prepare(image) for image in images])
    if (root / "cifar10" / "test").is_dir():
        files = find_images([str(root / "cifar10" / "test")])
        found["cifar10"] = np.stack([recogniser.prepare(file.path) for file in files])
    return found


def auroc(known: NDArray[np.float64], unknown: NDArray[np.float64]) -> float:
    """In [0, 1]."""
    is_unknown = np.r_[np.zeros(len(known)), np.ones(len(unknown))]
    return float(roc_auc_score(is_unknown, np.r_[known, unknown]))


@torch.inference_mode()
def main() -> None:
    parser = new_parser(__doc__, "export", repeats=9)
    parser.add_argument("--ckpt_path", type=Path, required=True, help="of a network that learned MNIST")
    arguments = parser.parse_args()
    machine = start(arguments)
    recogniser = load_checkpoint(arguments.ckpt_path)
    ranges = MNIST(str(arguments.data_root), train=True).data[:RANGES, None].numpy()
    asked = np.stack([recogniser.prepare(image) for image in example_images()])
    known = MNIST(str(arguments.data_root), train=False)
    sets = {"mnist": known.data[:, None].numpy(), **unknown_sets(arguments.data_root, recogniser)}
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float32": Path(folder, "float32.onnx"), "int8": Path(folder, "int8.onnx")}
        export(recogniser, paths["float32"], asked)
        export(recogniser, paths["int8"], asked, ranges)
        graphs = {name: load(path) for name, path in paths.items()}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    sides = {"recogniser": recogniser, **graphs}

    score, threshold = recogniser.threshold.score, recogniser.threshold.value
    answers = {
        name: {one: side.answer(images) for one, images in sets.items()} for name, side in sides.items()
    }
    rows, results = [], {}
    for name, found in answers.items():
        expected = answers["recogniser"]
        given = {one: answer.scores[score] for one, answer in found.items()}
        other = sum(int((found[one].unknown != expected[one].unknown).sum()) for one in sets)
        far = max(
            float((np.abs(given[one] - wanted) / np.maximum(1, np.abs(wanted))).max())
            for one in sets
            for wanted in [expected[one].scores[score]]
        )
        accuracy = float((found["mnist"].probabilities.argmax(1) == known.targets.numpy()).mean())
        aurocs = {one: auroc(given["mnist"], given[one]) for one in sets if one != "mnist"}
        results[name] = {
            "bytes": sizes.get(name),
            "accuracy": accuracy,
            "auroc": aurocs,
            "decided_otherwise": other,
            "largest_difference": far,
        }
        rows.append(
            [
                name,
                f"{sizes[name] / 1e6:.1f}" if name in sizes else "",
                f"{accuracy:.2%}",
                *(f"{value * 100:.3f}" for value in aurocs.values()),
                other,
                f"{far:.1e}",
            ]
        )
    count = sum(map(len, sets.values()))
    near = sum(
        int((np.abs(answer.scores[score] - threshold) <= TOLERANCE * max(1, abs(threshold))).sum())
        for answer in answers["recogniser"].values()
    )
    print_table(
        f"{count:,} images, score {score}: {near} within {TOLERANCE:g} of the threshold",
        [
            "",
            "MB",
            "accuracy",
            *(f"AUROC {one}" for one in aurocs),
            "decided otherwise",
            "largest difference",
        ],
        rows,
    )

    times: dict[str, dict[str, float]] = {}
    for size in BATCHES:
        some = sets["mnist"][:size]
        value = np.array(threshold)
        calls = {"recogniser": partial(recogniser.answer, some)} | {
            name: partial(graph.session.run, OUTPUTS, {"images": some, "threshold": value})
            for name, graph in graphs.items()
        }
        for call in calls.values():
            call()
        runs = interleave({name: partial(timed, call) for name, call in calls.items()}, arguments.repeats)
        times[str(size)] = {name: median(values) for name, values in runs.items()}
    print_table(
        "milliseconds a batch",
        ["images", *sides],
        [[size, *(f"{values[name] * 1e3:.2f}" for name in sides)] for size, values in times.items()],
    )
    finish(arguments, machine, {"results": results, "seconds": times}, [])


if __name__ == "__main__":
    main()
