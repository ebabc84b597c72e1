"""What memory order, precision, batch and `compile` bring to a training step on CIFAR-10's pictures.

Each network learns from the same real pictures as `osr fit` has it by itself (channels last, bfloat16 where
the processor multiplies it, 128 pictures a step, AdamW), and with one of these changed at a time. Sides take
turns; the table shows the median of images per second, and their ratio to the first. A first step of each, in
which kernels are chosen or compiled, is left out.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from common import finish, interleave, new_parser, print_table, start
from PIL import Image
from torch import Tensor, nn

from osr_lightning.models.allocator import keep_freed_memory
from osr_lightning.models.networks import NETWORKS
from osr_lightning.training.precision import computes_bfloat16

CLASSES = 10


class Step(NamedTuple):
    """How a step is done."""

    channels_last: bool = True
    bfloat16: bool = True
    batch: int = 128
    compiled: bool = False


OWN = "as `osr fit` has it"
STEPS = {
    OWN: Step(),
    "channels first": Step(channels_last=False),
    "float32": Step(bfloat16=False),
    "batches of 32": Step(batch=32),
    "batches of 512": Step(batch=512),
    "compiled": Step(compiled=True),
}


def main() -> None:
    parser = new_parser(__doc__, "steps", repeats=3)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=["ConvNet", "ResNet18"])
    parser.add_argument("--images", type=int, default=512, help="that a side learns from in each round")
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), default=list(STEPS), help="to compare")
    arguments = parser.parse_args()
    machine = start(arguments)
    keep_freed_memory()
    images, labels = pictures(arguments)
    found: dict[str, dict[str, float]] = {}
    for name in arguments.networks:
        sides = {one: Side(name, STEPS[one], images, labels).run for one in arguments.steps}
        runs = interleave(sides, arguments.repeats)
        found[name] = {one: median(speeds) for one, speeds in runs.items()}
    first = arguments.steps[0]
    rows = [
        (one, *(f"{of[one]:,.0f} ({of[one] / of[first]:.2f})" for of in found.values()))
        for one in arguments.steps
    ]
    print_table("Images per second of training", ["", *found], rows)
    finish(arguments, machine, {"bfloat16": computes_bfloat16(), "images_per_s": found}, [])


def pictures(arguments: Namespace) -> tuple[Tensor, Tensor]:
    """CIFAR-10's training pictures, as many of each class, standardised; and their labels."""
    folders = sorted(one for one in (arguments.data_root / "cifar10" / "train").iterdir() if one.is_dir())
    some = [islice(sorted(folder.iterdir()), -(-arguments.images // CLASSES)) for folder in folders]
    files = [file for each in zip(*some, strict=True) for file in each][: arguments.images]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    return images, torch.arange(len(images)) % CLASSES


class Side:
    """One network that learns in one way; a first step is done."""

    def __init__(self, name: str, step: Step, images: Tensor, labels: Tensor) -> None:
        torch.manual_seed(0)
        network: nn.Module = NETWORKS[name](num_classes=CLASSES, in_channels=3, image_size=images.shape[-1])
        order = torch.channels_last if step.channels_last else torch.contiguous_format
        network = network.to(memory_format=order).train()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=0.001, fused=True)
        self.forward: Callable[[Tensor], Tensor] = torch.compile(network) if step.compiled else network
        self.step, self.labels = step, labels
        self.images = images.contiguous(memory_format=order)
        self.learn(next(self.batches()))

    def batches(self) -> Iterator[Tensor]:
        """Rows of images, each as often as the others."""
        return iter(torch.arange(len(self.images)).split(self.step.batch))

    def learn(self, rows: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.step.bfloat16 and computes_bfloat16()):
            loss = F.cross_entropy(self.forward(self.images[rows]), self.labels[rows])
        loss.backward()
        self.optimizer.step()

    def run(self) -> float:
        """Images per second of one round."""
        begin = time.perf_counter()
        for rows in self.batches():
            self.learn(rows)
        return len(self.images) / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
