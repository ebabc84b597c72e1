"""How long MC dropout takes: the plain loop, the shared trunk, the folded head, and one deterministic pass.

All sides take turns within one process on the same MNIST test images; the table shows medians. Where
pytorch-ood or torch-uncertainty is installed, its MC dropout takes part too. The weights are random: the
time does not depend on them.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from common import Target, console, finish, new_parser, print_table, start
from torch import Tensor
from torchvision.datasets import MNIST

from osr_lightning.models.allocator import keep_freed_memory
from osr_lightning.models.mc_dropout import MCDropout, Method
from osr_lightning.models.networks import MCDropoutCNN

SAMPLES = (1, 10, 50, 200)
LOOP_LIMIT = 50  # a loop's time is proportional to the samples; 200 would only cost patience
DETERMINISTIC, LOOP, TRUNK, FOLD = "one deterministic pass", "plain loop", "shared trunk", "folded"

Side = Callable[[Tensor, int], object]


def plain_loop(network: MCDropoutCNN) -> Side:
    network.dropout.train()
    return lambda images, samples: torch.stack([network(images) for _ in range(samples)])


def sampler(network: MCDropoutCNN, samples: int, method: Method) -> MCDropout:
    made = MCDropout(copy.deepcopy(network), (1, 28, 28), samples, method=method)
    return made.to(next(network.parameters()).device).eval()


def ours(network: MCDropoutCNN, method: Method) -> Side:
    made = {samples: sampler(network, samples, method) for samples in SAMPLES}
    return lambda images, samples: made[samples](images).logits


def opponents(network: MCDropoutCNN) -> dict[str, Side]:
    """The other libraries' sides, as far as they are installed."""
    found: dict[str, Side] = {}
    try:
        from pytorch_ood.detector import MCD  # type: ignore[import-not-found]
    except ImportError:
        pass
    else:
        theirs = copy.deepcopy(network)
        found["pytorch-ood"] = lambda images, samples: MCD.run_mean(theirs, images, samples)
    try:
        from torch_uncertainty.methods.mc_dropout import mc_dropout  # type: ignore[import-not-found]
    except ImportError:
        pass
    else:
        wrapped = {n: mc_dropout(copy.deepcopy(network), n).eval() for n in SAMPLES}
        found["torch-uncertainty"] = lambda images, samples: wrapped[samples](images)
    return found


def load_images(root: Path, count: int) -> Tensor:
    try:
        images: Tensor = MNIST(root=str(root), train=False).data[:count]
    except RuntimeError as error:
        raise SystemExit(f"There is no MNIST in {root}; name its folder with --data-root.") from error
    return images[:, None].float() / 255


def measure(
    sides: dict[str, Side], images: Tensor, batch_size: int, repeats: int
) -> dict[tuple[str, int], list[float]]:
    """Seconds for all images, every side and number of samples once per round."""
    batches = torch.split(images, batch_size)
    runs = [(DETERMINISTIC, 1)]
    runs += [(name, n) for n in SAMPLES for name in sides if name != DETERMINISTIC]
    runs = [(name, n) for name, n in runs if name in (DETERMINISTIC, TRUNK, FOLD) or n <= LOOP_LIMIT]
    seconds: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    for name, _ in runs:
        sides[name](batches[0], 1)  # warm-up
    for _ in range(repeats):
        for name, samples in runs:
            start = time.perf_counter()
            for batch in batches:
                sides[name](batch, samples)
            if images.is_cuda:
                torch.cuda.synchronize()
            seconds[name, samples].append(time.perf_counter() - start)
    return seconds


def targets(medians: dict[tuple[str, int], float]) -> list[Target]:
    """What is claimed, the ratio measured and the target."""
    one = medians[DETERMINISTIC, 1]
    ten, many = medians[FOLD, 10], medians[FOLD, 200]
    return [
        Target("10 samples: times faster than the plain loop", medians[LOOP, 10] / ten, 9),
        Target("10 samples: times one deterministic pass", ten / one, 1.15, at_least=False),
        Target("200 samples: times one deterministic pass", many / one, 3, at_least=False),
    ]


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "mc_dropout", repeats=5)
    parser.add_argument("--images", type=int, default=10_000, help="how many test images")
    parser.add_argument("--batch-size", type=int, default=512, help="images per batch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    images = load_images(arguments.data_root, arguments.images).to(arguments.device)
    keep_freed_memory()  # as every command does
    torch.manual_seed(0)
    network = MCDropoutCNN().eval().to(arguments.device)
    sides: dict[str, Side] = {
        DETERMINISTIC: lambda batch, _: network(batch),
        LOOP: plain_loop(copy.deepcopy(network)),
        **opponents(network),
        TRUNK: ours(network, "trunk"),
        FOLD: ours(network, "fold"),
    }
    methods: tuple[Method, ...] = ("loop", "fold")
    exact, folded = (sampler(network, 10, method)(images[:256]).logits for method in methods)
    machine["device"] = torch.cuda.get_device_name() if images.is_cuda else "cpu"
    seconds = measure(sides, images, arguments.batch_size, arguments.repeats)
    medians = {run: median(times) for run, times in seconds.items()}
    print_table(
        f"{len(images)} images in batches of {arguments.batch_size}, milliseconds (median)",
        ["", *(f"{samples} sample{'s' * (samples > 1)}" for samples in SAMPLES)],
        [
            (name, *(f"{1000 * medians[name, n]:.0f}" if (name, n) in medians else "-" for n in SAMPLES))
            for name in sides
        ],
    )
    console.print(f"Loops are not run for more than {LOOP_LIMIT} samples.")
    console.print(
        f"Largest difference of a logit between folded and loop: {(exact - folded).abs().max():.1e}"
    )
    runs = [{"side": name, "samples": n, "runs": times} for (name, n), times in seconds.items()]
    finish(arguments, machine, {"seconds": runs}, targets(medians))


if __name__ == "__main__":
    main()
