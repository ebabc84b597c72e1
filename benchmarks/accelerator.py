"""What to check on a machine with a GPU, in under five minutes and without data: run it, keep the JSON.

Trains the study's MC-dropout network on the device for a few epochs of the embedded digits, and asks whether

- the device decides on every test image as the CPU does, but for scores within 1e-4 of the threshold;
- how many images a second are trained on, in float32, in bfloat16 and compiled, and with what accuracy;
- how many are decided on, with 1, 10 and 200 samples, alone and in batches, and what 200 samples cost;
- how many a backbone is fine-tuned on, at the size that its weights want, in bfloat16 (its weights are those
  of the package index where these are installed, else random, and then its accuracy says nothing);
- two processes on the one device train well, or are refused in a sentence.

It works on the CPU too, where it compares the CPU with itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import Any

import numpy as np
import torch
from common import Target, finish, new_parser, print_table, quiet_lightning, start, timed
from numpy.typing import NDArray
from training import Clock

from osr_lightning import MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer, Recogniser, load
from osr_lightning.data_spec import DataSpec
from osr_lightning.models.backbones import DEFAULT_NAME, installed
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.training.callbacks.evaluator import Evaluator

UNKNOWN = {"photo_patches": "photo_patches"}
TOLERANCE = 1e-4  # of a score, relative where it is above 1
FITS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "32-true"},
    "bfloat16": {"precision": "bf16-mixed"},
    "compiled": {"precision": "32-true", "compiled": True},
    "finetuned": {"precision": "bf16-mixed"},
}
TUNED = "finetuned"
CHECKS = ("decisions", "samples", "processes")
SAMPLES = (1, 10, 200)
BATCHES = (1, 1024)


def classifier(backbone: str | None, **options: Any) -> MCDropoutClassifier:  # noqa: ANN401
    """The study's, or a backbone that is fine-tuned."""
    if backbone is None:
        return MCDropoutClassifier(network="MCDropoutCNN", schedule="one_cycle", **options)
    weights = "DEFAULT" if backbone == DEFAULT_NAME and installed() else None
    network = {"class_path": "Backbone", "init_args": {"name": backbone, "weights": weights}}
    return MCDropoutClassifier(network, finetune=True, **options)


def fit(
    folder: str,
    device: str,
    epochs: int,
    precision: Any,  # noqa: ANN401
    compiled: bool = False,
    backbone: str | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """A whole run; images per second of its training, its accuracies, and its checkpoint."""
    clock = Clock()
    datamodule = OpenSetDataModule(known="mnist_sample", unknown=UNKNOWN, image_size=image_size)
    trainer = OpenSetTrainer(
        default_root_dir=folder,
        accelerator=device,
        devices=1,
        max_epochs=epochs,
        precision=precision,
        enable_progress_bar=False,
        callbacks=[clock, Evaluator(figures=False, projector_points=0, bootstrap=10)],
    )
    # the first epoch compiles, warms up and is not measured
    clock.first = min(1, epochs - 1)
    results = trainer.run(classifier(backbone, compile=compiled), datamodule)
    images = results["data"]["known"]["train"] * (epochs - clock.first)
    return {
        "train_images_per_s": images / clock.seconds,
        "test_images_per_s": results["timing"]["images_per_s"],
        "closed_set_accuracy": results["closed_set"]["accuracy"],
        "total_accuracy": results["open_set"]["total_accuracy"],
        "auroc": results["open_set"]["auroc"],
        "checkpoint": trainer.checkpoint_callback.best_model_path,
    }


def decisions(checkpoint: str, device: str, images: NDArray[np.uint8]) -> dict[str, float]:
    """How the device's answers differ from the CPU's."""
    cpu = load(checkpoint)
    expected, found = cpu.answer(images), load(checkpoint, device=device).answer(images)
    score, threshold = cpu.threshold.score, cpu.threshold.value
    wanted, given = expected.scores[score], found.scores[score]
    near = np.abs(wanted - threshold) <= TOLERANCE * max(1, abs(threshold))
    otherwise = expected.prediction != found.prediction
    return {
        "images": len(images),
        "decided_otherwise": int((otherwise & ~near).sum()),
        "within_tolerance_of_threshold": int(near.sum()),
        "largest_difference": float((np.abs(wanted - given) / np.maximum(1, np.abs(wanted))).max()),
    }


def new_recogniser(samples: int, device: str) -> Recogniser:
    """The study's network with random weights, whose time does not depend on them."""
    spec = DataSpec(tuple("0123456789"), 1, 28, (0.1307,), (0.3081,))
    recipe = {"sampler": "mc_dropout", "num_samples": samples, "score": "generalized_entropy", "fixed": 1.0}
    return build(recipe, spec).eval().to(device)


@torch.inference_mode()
def decided_per_second(samples: int, batch: int, device: str, repeats: int) -> float:
    """Images per second, copied to the device and decided on; a quarter of the batches warms up."""
    asked = new_recogniser(samples, device)
    images = torch.randint(0, 256, (batch, 1, 28, 28), dtype=torch.uint8)
    seconds = [timed(lambda: asked(images.to(device)).score.cpu()) for _ in range(repeats)]
    return batch / median(seconds[repeats // 4 :])


def two_processes(folder: str, device: str) -> dict[str, Any]:
    """What two processes on one device do: the exit status and the last line."""
    options = {
        "trainer.accelerator": device,
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.max_epochs": 1,
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "data.known": "mnist_sample",
        "data.unknown": UNKNOWN,
    }
    command = [sys.executable, "-m", "osr_lightning", "fit", "--model", "MCDropoutClassifier"]
    command += [f"--{name}={value}" for name, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    lines = [line for line in done.stderr.splitlines() if line.strip()] or [""]
    return {
        "status": done.returncode,
        "said": lines[-1],
        "traceback": "Traceback" in done.stderr,
        "fine": done.returncode in (0, 1, 2) and "Traceback" not in done.stderr,
    }


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "accelerator", repeats=None)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu"
    )
    parser.add_argument("--epochs", type=int, default=4, help="of each training")
    parser.add_argument("--backbone", default=DEFAULT_NAME, help="that is fine-tuned (default: %(default)s)")
    parser.add_argument(
        "--image-size", type=int, help="pixels a side of its images; its weights' if not given"
    )
    parser.add_argument("--fits", nargs="+", choices=FITS, default=[*FITS], help="ways to train")
    parser.add_argument("--checks", nargs="*", choices=CHECKS, default=[*CHECKS], help="beside the fits")
    parser.add_argument("--batches", type=int, default=12, help="timed of each size, a quarter to warm up")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    device = arguments.device
    machine["device"] = torch.cuda.get_device_name() if device == "cuda" else device
    begun = time.perf_counter()
    quiet_lightning()
    results: dict[str, Any] = {}
    targets: list[Target] = []
    with tempfile.TemporaryDirectory() as folder:
        tuned = {"backbone": arguments.backbone, "image_size": arguments.image_size}
        fits = {}
        for name in arguments.fits:
            options = {**FITS[name], **(tuned if name == TUNED else {})}
            fits[name] = fit(folder, device, arguments.epochs, **options)
        checkpoints = {name: found.pop("checkpoint") for name, found in fits.items()}
        results["fits"] = fits
        print_table(
            f"{machine['device']}: fits of {arguments.epochs} epochs",
            ["", *(name.replace("_", " ") for name in next(iter(fits.values())))],
            [[name, *(f"{value:,.4g}" for value in found.values())] for name, found in fits.items()],
        )
        studied = [checkpoint for name, checkpoint in checkpoints.items() if name != TUNED]
        if "decisions" in arguments.checks and studied:
            datamodule = OpenSetDataModule(known="mnist_sample", unknown=UNKNOWN)
            same = decisions(studied[0], device, datamodule.tables.load_test().images.numpy())
            results["decisions"] = same
            print_table("decisions beside the CPU's", ["", ""], [[k, f"{v:g}"] for k, v in same.items()])
            otherwise = same["decided_otherwise"]
            targets.append(Target("decided otherwise than by the CPU", otherwise, 0, at_least=False))
        if "samples" in arguments.checks:
            rates = {
                str(samples): {
                    str(batch): decided_per_second(samples, batch, device, arguments.batches)
                    for batch in BATCHES
                }
                for samples in SAMPLES
            }
            results["decided_per_s"] = rates
            print_table(
                "images decided on, a second",
                ["samples", *(f"batches of {batch}" for batch in BATCHES)],
                [[samples, *(f"{rate:,.0f}" for rate in found.values())] for samples, found in rates.items()],
            )
            cost = rates["1"]["1024"] / rates["200"]["1024"]
            targets.append(Target("200 samples, times one", cost, 3, at_least=False))
        if "processes" in arguments.checks:
            both = results["two_processes"] = two_processes(folder, device)
            print_table("two processes on the device", ["status", "said"], [[both["status"], both["said"]]])
            targets.append(Target("two processes train, or are refused in a sentence", both["fine"], 1))
    results["seconds"] = time.perf_counter() - begun
    targets.append(Target("seconds in all", results["seconds"], 300, at_least=False))
    finish(arguments, machine, results, targets)


if __name__ == "__main__":
    main()
