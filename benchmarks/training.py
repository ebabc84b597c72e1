"""Images per second of training: our fit, a bare PyTorch loop, and the notebook's data path.

All sides train on MNIST's training images in batches of 128 and take turns within one process; the table
shows medians. The bare loop works on the same tensors in memory, with the same network and optimizer, and
does nothing but train: it is the limit. The notebook's data path is torchvision's MNIST, PIL transforms for
each image and a DataLoader, before the same loop and network; the last side also has the network as the
notebook wrote it. Our fit has its loggers, checkpoints, schedule and metrics on. Its validation passes are
left out of its images per second and part of the column "whole fit".
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from common import Target, console, finish, interleave, new_parser, print_table, quiet_lightning, start
from lightning.pytorch import Callback, LightningModule, Trainer
from notebook_protocol import CNN
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.sources import holdout
from osr_lightning.models.classifiers import BaselineClassifier, MCDropoutClassifier, OpenSetClassifier
from osr_lightning.trainer import OpenSetTrainer

CLASSIFIERS: dict[str, type[OpenSetClassifier]] = {
    "baseline": BaselineClassifier,
    "mc_dropout": MCDropoutClassifier,
}
FIT, BARE, NOTEBOOK, ITS_NETWORK = "our fit", "bare loop", "notebook's data path", "and its network"
BATCH = 128
MEAN, STD = 0.1307, 0.3081
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"

Batches = Iterable[tuple[Tensor, Tensor]]


class Clock(Callback):
    """Seconds from the first epoch's start to the end of training, without the validation passes."""

    begin = paused = seconds = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        if trainer.current_epoch == 0:
            self.begin = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pause."""
        self.paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on; checkpoints are written after this and count."""
        self.begin += time.perf_counter() - self.paused

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.begin


def our_fit(
    name: str, arguments: argparse.Namespace, steps: int, precision: str = "32-true", compiled: bool = False
) -> dict[str, float]:
    """A fit with the trainer's own loggers and checkpoints, in a temporary folder, without progress bar."""
    begin = time.perf_counter()
    datamodule = OpenSetDataModule(root=str(arguments.data_root))
    # of the 12,000 validation images the same share as of the training images
    val_steps = max(1, round(steps * BATCH * 0.25 / datamodule.eval_batch_size))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = OpenSetTrainer(
            default_root_dir=folder,
            max_epochs=arguments.epochs,
            limit_train_batches=steps,
            limit_val_batches=val_steps,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[clock],
            precision=precision,
        )
        trainer.fit(CLASSIFIERS[name](compile=compiled), datamodule=datamodule)
        return {"seconds": clock.seconds, "whole": time.perf_counter() - begin}


def loop(
    network: nn.Module, optimizer: torch.optim.Optimizer, batches: Callable[[], Batches], epochs: int
) -> dict[str, float]:
    """Nothing but training."""
    network.train()
    # importing Lightning sets this; it makes Adam look for a GPU in every step, which no bare loop would pay
    check = os.environ.pop(NVML_CHECK, None)
    begin = time.perf_counter()
    for _ in range(epochs):
        for images, labels in batches():
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
    seconds = time.perf_counter() - begin
    if check is not None:
        os.environ[NVML_CHECK] = check
    return {"seconds": seconds}


def bare_loop(name: str, images: Tensor, labels: Tensor, steps: int, epochs: int) -> dict[str, float]:
    """The loop on tensors in memory, with the network and the optimizer of our fit."""
    classifier = CLASSIFIERS[name](schedule="step")
    (optimizer,), _ = classifier.configure_optimizers()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for row in torch.randperm(len(images)).split(BATCH)[:steps]:
            yield images[row].float().div_(255).sub_(MEAN).div_(STD), labels[row]

    return loop(classifier.network, optimizer, batches, epochs)


def notebook_path(network: nn.Module, loader: DataLoader[Any], steps: int, epochs: int) -> dict[str, float]:
    """The loop on what a DataLoader brings."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    return loop(network, optimizer, lambda: islice(loader, steps), epochs)


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "training", repeats=5)
    parser.add_argument("--models", nargs="+", choices=CLASSIFIERS, default=[*CLASSIFIERS], help="networks")
    parser.add_argument("--images", type=int, default=48_000, help="training images per epoch, at most 48000")
    parser.add_argument("--epochs", type=int, default=1, help="epochs per run")
    parser.add_argument("--options", action="store_true", help="our fit with bf16 and with torch.compile too")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    quiet_lightning()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    try:
        mnist = MNIST(str(arguments.data_root), train=True, transform=transform)
    except RuntimeError as error:
        raise SystemExit(f"There is no MNIST in {arguments.data_root}; give --data-root.") from error
    rows, _ = holdout(mnist.targets, 0.2, seed=0)
    images, labels = mnist.data[rows].unsqueeze(1), mnist.targets[rows]
    loader = DataLoader(Subset(mnist, rows.tolist()), batch_size=BATCH, shuffle=True, num_workers=0)
    steps = min(arguments.images, len(rows)) // BATCH
    if steps < 1:
        raise SystemExit(f"--images must be at least one batch of {BATCH}.")

    total = steps * BATCH * arguments.epochs
    results: list[dict[str, Any]] = []
    targets: list[Target] = []
    for name in arguments.models:
        bare_loop(name, images, labels, steps=5, epochs=1)  # warm-up
        runs = interleave(
            {
                FIT: lambda name=name: our_fit(name, arguments, steps),
                **(
                    {
                        "our fit, bf16-mixed": lambda name=name: our_fit(
                            name, arguments, steps, "bf16-mixed"
                        ),
                        "our fit, compiled": lambda name=name: our_fit(name, arguments, steps, compiled=True),
                    }
                    if arguments.options
                    else {}
                ),
                BARE: lambda name=name: bare_loop(name, images, labels, steps, arguments.epochs),
                NOTEBOOK: lambda name=name: notebook_path(
                    CLASSIFIERS[name]().network, loader, steps, arguments.epochs
                ),
                ITS_NETWORK: lambda name=name: notebook_path(
                    CNN(0.5 if name == "mc_dropout" else 0.0), loader, steps, arguments.epochs
                ),
            },
            arguments.repeats,
        )
        seconds = {side: median(run["seconds"] for run in found) for side, found in runs.items()}
        whole = median(run["whole"] for run in runs[FIT])
        print_table(
            f"{name}: {steps * BATCH} images per epoch, {arguments.epochs} epochs, "
            f"median of {arguments.repeats}",
            ["", "images/s", "s per epoch", "ms per step", "whole fit, s"],
            [
                (
                    side,
                    f"{total / value:.0f}",
                    f"{value / arguments.epochs:.2f}",
                    f"{1000 * value / arguments.epochs / steps:.2f}",
                    f"{whole:.2f}" if side == FIT else "",
                )
                for side, value in seconds.items()
            ],
        )
        results += [{"model": name, "side": side, "runs": found} for side, found in runs.items()]
        targets += [
            Target(f"{name}: fit against the bare loop, images/s", seconds[BARE] / seconds[FIT], 0.9),
            Target(f"{name}: fit against the notebook's data path", seconds[NOTEBOOK] / seconds[FIT], 3.5),
            Target(f"{name}: and against its network too", seconds[ITS_NETWORK] / seconds[FIT], 3.5),
        ]
    console.print("The whole fit also reads the data, validates, and writes checkpoints and logs.")
    finish(arguments, machine, {"images_per_run": total, "runs": results}, targets)


if __name__ == "__main__":
    main()
