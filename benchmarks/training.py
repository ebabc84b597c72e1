"""Images per second of training: our fit, a bare PyTorch loop, and the notebook's data path.

All sides train on MNIST's training images in batches of 128 and take turns; the table shows medians. Each run
is a process of its own, for what one side does to the memory allocator would speed up or slow down the next.
The bare loop works on the same tensors in memory, with the same network, optimizer, precision and allocator
settings, and does nothing but train: it is the limit. The notebook's data path is torchvision's MNIST, PIL
transforms for each image and a DataLoader, before a loop of plain PyTorch in float32; the last side also has
the network as the notebook wrote it. Our fit has its loggers, checkpoints, schedule and metrics on. Its
validation passes are left out of its images per second and part of the column "whole fit".

With --augment, our fit and the bare loop vary their images in the same way. With --profile, a table says
where the bare loop's time goes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from statistics import median
from typing import Any, Literal

import torch
import torch.nn.functional as F
from common import Target, console, finish, interleave, new_parser, print_table, quiet_lightning, start
from lightning.pytorch import Callback, LightningModule, Trainer
from notebook_protocol import CNN
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

from osr_lightning.data.augment import AUGMENTATIONS
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.splits import holdout
from osr_lightning.data_spec import DataSpec
from osr_lightning.models.allocator import keep_freed_memory
from osr_lightning.training.module import BaselineClassifier, MCDropoutClassifier, OpenSetClassifier
from osr_lightning.training.precision import computes_bfloat16
from osr_lightning.training.trainer import OpenSetTrainer

CLASSIFIERS: dict[str, type[OpenSetClassifier]] = {
    "baseline": BaselineClassifier,
    "mc_dropout": MCDropoutClassifier,
}
FIT, BARE, FIT32, BARE32 = "our fit", "bare loop", "our fit, float32", "bare loop, float32"
NOTEBOOK, ITS_NETWORK = "notebook's data path", "and its network"
OPERATIONS = {
    "convolutions": {"aten::mkldnn_convolution", "aten::convolution_backward"},
    # the backward pass first fills its gradient with zeros
    "pooling": {"aten::max_pool2d_with_indices", "aten::max_pool2d_with_indices_backward", "aten::fill_"},
    "linear layers": {"aten::addmm", "aten::mm"},
    "Adam": {"Optimizer.step#Adam.step", "aten::_fused_adam_"},
    "reading a batch": {"aten::index"},
}
BATCH = 128
MEAN, STD = 0.1307, 0.3081
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"

Run = dict[str, float]


class Clock(Callback):
    """Seconds from the start of epoch ``first`` to the end of training, without the validation passes."""

    begin = paused = seconds = 0.0
    first = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        if trainer.current_epoch == self.first:
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
    name: str,
    arguments: argparse.Namespace,
    precision: Literal["auto", "32-true"] = "auto",
    compiled: bool = False,
) -> Run:
    """A fit with the trainer's own loggers and checkpoints, in a temporary folder, without progress bar."""
    quiet_lightning()
    begin = time.perf_counter()
    datamodule = OpenSetDataModule(root=str(arguments.data_root))
    steps = arguments.images // BATCH
    # of the 12,000 validation images the same share as of the training images
    val_steps = max(1, round(steps * BATCH * 0.25 / datamodule.hparams["eval_batch_size"]))
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
        model = CLASSIFIERS[name](compile=compiled, augment=arguments.augment)
        trainer.fit(model, datamodule=datamodule)
        return {"seconds": clock.seconds, "whole": time.perf_counter() - begin}


def loop(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    epochs: int,
    bfloat16: bool = False,
) -> Run:
    """Nothing but training."""
    network.train()
    # importing Lightning sets this; it makes Adam look for a GPU in every step, which no bare loop would pay
    os.environ.pop(NVML_CHECK, None)
    begin = time.perf_counter()
    for _ in range(epochs):
        for images, labels in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
    return {"seconds": time.perf_counter() - begin}


def new_classifier(name: str) -> OpenSetClassifier:
    """The classifier that our fit trains, built for MNIST."""
    classifier = CLASSIFIERS[name]()
    classifier.build(DataSpec(tuple("0123456789"), 1, 28, (MEAN,), (STD,)))
    return classifier


def bare_loop(name: str, arguments: argparse.Namespace, bfloat16: bool = False) -> Run:
    """The loop on tensors in memory, with the network, optimizer and allocator settings of our fit."""
    keep_freed_memory()
    mnist, rows = training_images(arguments)
    images, labels = mnist.data[rows].unsqueeze(1), mnist.targets[rows]
    classifier = new_classifier(name)
    (optimizer,), _ = classifier.configure_optimizers()
    vary = AUGMENTATIONS[arguments.augment]

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for row in torch.randperm(len(images)).split(BATCH)[: arguments.images // BATCH]:
            yield vary(images[row].float().div_(255).sub_(MEAN).div_(STD)), labels[row]

    return loop(classifier.trained.sampler.network, optimizer, batches, arguments.epochs, bfloat16)


def profiled_loop(name: str, arguments: argparse.Namespace, bfloat16: bool = False) -> Run:
    """Share of the bare loop's time by kind of operation, as torch's profiler sees it."""
    # few steps: the profiler's records take memory too, which would be measured with the rest
    arguments.images, arguments.epochs = min(arguments.images, 100 * BATCH), 1
    bare_loop(name, arguments, bfloat16)  # what happens once is not of interest
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        bare_loop(name, arguments, bfloat16)
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = dict.fromkeys([*OPERATIONS, "all others"], 0.0)
    for event in events:
        kind = next((kind for kind, names in OPERATIONS.items() if event.key in names), "all others")
        shares[kind] += event.self_cpu_time_total / total
    return shares


def notebook_path(name: str, arguments: argparse.Namespace, its_network: bool = False) -> Run:
    """The loop on what a DataLoader brings."""
    mnist, rows = training_images(arguments)
    loader = DataLoader(Subset(mnist, rows.tolist()), batch_size=BATCH, shuffle=True, num_workers=0)
    network = (
        CNN(0.5 if name == "mc_dropout" else 0.0)
        if its_network
        else new_classifier(name).trained.sampler.network
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    return loop(network, optimizer, lambda: islice(loader, arguments.images // BATCH), arguments.epochs)


def training_images(arguments: argparse.Namespace) -> tuple[MNIST, Tensor]:
    """MNIST with the notebook's transforms, and the rows of 48,000 training images."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    mnist = MNIST(str(arguments.data_root), train=True, transform=transform)
    return mnist, holdout(mnist.targets, 0.2, seed=0)[0]


def in_new_process(
    side: Callable[..., Run], name: str, arguments: argparse.Namespace, *options: object
) -> Run:
    """One run of a side, in a process that has done nothing else."""
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=start, initargs=(arguments,)
    ) as new:
        return new.submit(side, name, arguments, *options).result()


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "training", repeats=3)
    parser.add_argument("--models", nargs="+", choices=CLASSIFIERS, default=[*CLASSIFIERS], help="networks")
    parser.add_argument("--images", type=int, default=48_000, help="training images per epoch, at most 48000")
    parser.add_argument("--epochs", type=int, default=1, help="epochs per run")
    parser.add_argument(
        "--augment", choices=AUGMENTATIONS, default="none", help="of our fit and the bare loop"
    )
    parser.add_argument("--compile", action="store_true", help="our fit with torch.compile too")
    parser.add_argument("--profile", action="store_true", help="show where the bare loop's time goes")
    arguments = parser.parse_args()
    arguments.images = min(arguments.images, 48_000) // BATCH * BATCH
    if not arguments.images:
        parser.error(f"--images must be at least one batch of {BATCH}.")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    try:
        training_images(arguments)
    except RuntimeError as error:
        raise SystemExit(f"There is no MNIST in {arguments.data_root}; give --data-root.") from error
    bfloat16 = computes_bfloat16()
    machine["training"] = "bf16-mixed" if bfloat16 else "float32"
    sides: dict[str, tuple[Any, ...]] = {
        FIT: (our_fit,),
        BARE: (bare_loop, bfloat16),
        **({FIT32: (our_fit, "32-true"), BARE32: (bare_loop,)} if bfloat16 else {}),
        **({"our fit, compiled": (our_fit, "auto", True)} if arguments.compile else {}),
        NOTEBOOK: (notebook_path,),
        ITS_NETWORK: (notebook_path, True),
    }

    total = arguments.images * arguments.epochs
    results: list[dict[str, Any]] = []
    targets: list[Target] = []
    for name in arguments.models:
        runs = interleave(
            {
                title: partial(in_new_process, side, name, arguments, *options)
                for title, (side, *options) in sides.items()
            },
            arguments.repeats,
        )
        seconds = {side: median(run["seconds"] for run in found) for side, found in runs.items()}
        print_table(
            f"{name}: {arguments.images} images per epoch, {arguments.epochs} epochs, "
            f"median of {arguments.repeats}",
            ["", "images/s", "s per epoch", "ms per step", "whole fit, s"],
            [
                (
                    side,
                    f"{total / value:.0f}",
                    f"{value / arguments.epochs:.2f}",
                    f"{1000 * value * BATCH / total:.2f}",
                    f"{median(run['whole'] for run in runs[side]):.2f}" if "whole" in runs[side][0] else "",
                )
                for side, value in seconds.items()
            ],
        )
        if arguments.profile:
            shares = in_new_process(profiled_loop, name, arguments, bfloat16)
            rows = [(kind, f"{share:.0%}") for kind, share in shares.items()]
            print_table(f"{name}: the bare loop's time", ["", "share"], rows)
            results.append({"model": name, "side": "profile of the bare loop", "runs": [shares]})
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
