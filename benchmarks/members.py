"""What more members, and more samples of MC dropout, cost and gain: one table.

Trains configs/near_far.yaml with a plain network and with MC dropout for every seed (`osr study`, which goes
on where it was stopped), joins the first 1, 3 and 5 of them (`osr ensemble`), and tests all on the unknown
sets. Another number of samples is the first seed's checkpoint calibrated again. Costs are passes of one plain
network, in turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import QUIET, finish, interleave, new_parser, print_table, quiet_lightning, run_osr, start
from methods import KINDS, near_options, timed

from osr_lightning import load

CONFIG = Path(__file__).parents[1] / "configs" / "near_far.yaml"


def tested(folder: Path, name: str, checkpoint: Path, options: Sequence[str]) -> dict[str, Any]:
    """The results of a checkpoint on all unknown sets."""
    run = folder / "lightning_logs" / name / "version_0"
    if not (run / "results.json").is_file():
        place = [f"--trainer.experiment={name}", "--trainer.version=0"]
        run_osr(["test", f"--ckpt_path={checkpoint}", *place, *options])
    return json.loads((run / "results.json").read_text())


def made(path: Path, command: list[str]) -> Path:
    """A checkpoint, made by the command if it is not there yet."""
    if not path.is_file():
        run_osr(command)
    return path


def main() -> None:
    parser = new_parser(__doc__, "members", repeats=5)
    parser.add_argument("--notmnist", type=Path, help="notMNIST's test images; data-root/notmnist_test.npz")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 50, 200], help="beside the config's 10")
    parser.add_argument("--epochs", type=int, help="those of the config if not given")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results" / "members")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    folder = arguments.folder
    known = [f"--data.root={arguments.data_root}", f"--trainer.default_root_dir={folder}", *QUIET]
    unknown = near_options(arguments.data_root, arguments.notmnist)
    epochs = [] if arguments.epochs is None else [f"--trainer.max_epochs={arguments.epochs}"]
    seeds = [str(seed) for seed in range(max(arguments.members))]
    checkpoints: dict[str, Path] = {}
    for kind, name in KINDS.items():
        options = [f"--model.class_path={name}", *unknown, *epochs, *known]
        run_osr(["study", str(CONFIG), "--seeds", *seeds, "--name", name, *options])
        runs = folder / "lightning_logs" / name
        paths = [runs / f"near_far-seed{seed}" / "checkpoints" / "best.ckpt" for seed in seeds]
        for count in arguments.members:
            target = folder / f"{name}_{count}.ckpt"
            command = ["ensemble", *map(str, paths[:count]), f"--output={target}", *known]
            title = f"{kind}, {count} member{'s' * (count > 1)}"
            checkpoints[title] = paths[0] if count == 1 else made(target, command)
    for count in arguments.samples:
        target = folder / f"samples_{count}.ckpt"
        command = [
            "calibrate",
            f"--ckpt_path={paths[0]}",
            f"--model.num_samples={count}",
            f"--output={target}",
        ]
        checkpoints[f"MC dropout, {count} sample{'s' * (count > 1)}"] = made(target, [*command, *known])
    results = {
        title: tested(folder, title.replace(", ", "-").replace(" ", "_"), path, [*unknown, *known])
        for title, path in checkpoints.items()
    }
    costs = measure(checkpoints, arguments.repeats)
    sets = list(next(iter(results.values()))["unknown"])
    print_table(
        "AUROC and accuracy in percent; cost in passes of one plain network",
        ["", "closed set", "total", *sets, "cost"],
        [
            [
                title,
                f"{100 * found['closed_set']['accuracy']:.2f}",
                f"{100 * found['open_set']['total_accuracy']:.2f}",
                *(f"{100 * found['unknown'][one]['auroc']:.3f}" for one in sets),
                f"{costs[title]:.2f}",
            ]
            for title, found in results.items()
        ],
    )
    finish(arguments, machine, {"costs": costs, "results": results}, [])


@torch.inference_mode()
def measure(checkpoints: dict[str, Path], repeats: int) -> dict[str, float]:
    """Time of a whole decision per image, in passes of the first one's network alone."""
    recognisers = {title: load(path).eval() for title, path in checkpoints.items()}
    first = next(iter(recognisers.values()))
    images = torch.randint(0, 256, (5120, *first.spec.input_shape), dtype=torch.uint8)
    sides: dict[str, Callable[[], float]] = {
        "": partial(timed, lambda batch: first.sampler.network(first.standardise(batch)), images),
        **{title: partial(timed, recogniser, images) for title, recogniser in recognisers.items()},
    }
    runs = interleave(sides, repeats)
    return {title: median(runs[title]) / median(runs[""]) for title in checkpoints}


if __name__ == "__main__":
    main()
