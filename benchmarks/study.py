"""The whole study, in our code and by the notebook's protocol: wall time and accuracy of both.

Both sides train the two models for the same epochs on the same data, search the threshold in 20 trials on
the combined test set, evaluate and draw. Ours are two commands `osr run` with configs/notebook/*.yaml, but
in our default precision; the other side is notebook_protocol.py. Each is a process of its own, whose wall
time includes its start-up. t-SNE is left out of both and timed apart with --tsne: ours draws 2,000 images,
the notebook all 12,000.

With --recipe, configs/baseline.yaml and configs/mc_dropout.yaml run too, without figures and in one process,
`osr study`, for as long as they need to the notebook's accuracy: one epoch in batches of 64, and two epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from common import Target, finish, interleave, new_parser, print_table, start

ROOT = Path(__file__).resolve().parent.parent
OURS, NOTEBOOK, RECIPE = "ours", "notebook", "recipe"
MODELS = ("baseline", "mc_dropout")
# what our own recipe needs to the notebook's accuracy
SHORT: dict[str, dict[str, dict[str, int]]] = {
    "baseline": {"trainer": {"max_epochs": 1}, "data": {"batch_size": 64}},
    "mc_dropout": {"trainer": {"max_epochs": 2}},
}
BASELINE_ACCURACY, TOTAL_ACCURACY = 0.9884, 0.9886  # the notebook's own figures

Run = dict[str, Any]  # seconds by phase, and results


def timed_process(command: list[str], **environment: str) -> float:
    """Wall seconds of a command; what it prints is shown only if it fails."""
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | environment,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\nended with status {done.returncode}")
    return time.perf_counter() - begin


def osr(command: list[str], arguments: argparse.Namespace, folder: Path, *options: str) -> float:
    """One command of ours: wall seconds, start-up included."""
    return timed_process(
        [
            *(sys.executable, "-m", "osr_lightning", *command),
            *("--trainer.default_root_dir", str(folder)),
            *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
            *("--data.root", str(arguments.data_root)),
            *("--evaluation.tsne_points", "0"),
            *options,
        ],
        # preprocessed pixels are kept from the first run to the second, but not from earlier ones
        OSR_CACHE_DIR=str(folder / "cache"),
    )


def unknown_images(arguments: argparse.Namespace) -> list[str]:
    return ["--data.unknown", json.dumps({"cifar10": f"folder:{arguments.data_root}/cifar10/test"})]


def our_run(arguments: argparse.Namespace, options: list[str]) -> Run:
    """Both models of the notebook, one command each."""
    phases: dict[str, float] = {}
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for model in MODELS:
            # the notebook judges its baseline on known digits alone
            unknown = [] if model == "baseline" else unknown_images(arguments)
            command = ["run", "--config", str(ROOT / "configs" / "notebook" / f"{model}.yaml")]
            wall = osr(command, arguments, folder, "--trainer.experiment", model, *unknown, *options)
            run = folder / "lightning_logs" / model / "version_0"
            inside = read(run, model, phases, results)
            phases[f"start-up, figures and report, {model}"] = wall - inside
        if arguments.tsne:
            phases["t-SNE"] = our_tsne(run)
    return {"seconds": phases, "results": results}


def our_recipe(arguments: argparse.Namespace, options: list[str]) -> Run:
    """Both models by our own recipe, in one command."""
    phases: dict[str, float] = {}
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configs = [folder / f"{model}.yaml" for model in MODELS]
        for model, config in zip(MODELS, configs, strict=True):
            values = yaml.safe_load((ROOT / "configs" / config.name).read_text())
            for part, changed in SHORT[model].items():
                values[part] |= changed
            config.write_text(yaml.safe_dump(values))
        command = ["study", *map(str, configs), "--seeds", str(arguments.recipe_seed), "--name", RECIPE]
        wall = osr(command, arguments, folder, *unknown_images(arguments), *options)
        runs = folder / "lightning_logs" / RECIPE
        for model in MODELS:
            wall -= read(runs / f"{model}-seed{arguments.recipe_seed}", model, phases, results)
        phases["start-up and report"] = wall
    return {"seconds": phases, "results": results}


def read(run: Path, model: str, phases: dict[str, float], results: dict[str, float]) -> float:
    """Enter a run's phases, as its results.json tells them, and its results; the phases' seconds in all."""
    found = json.loads((run / "results.json").read_text())
    timing = found["timing"]
    own = {
        f"fit {model}": timing["fit_s"],
        f"threshold, {model}": timing["calibrate_s"],
        f"test, {model}": timing["test_s"],
    }
    phases |= own
    if model == "baseline":
        results["baseline_accuracy"] = found["closed_set"]["accuracy"]
    else:
        results |= found["open_set"]
    return sum(own.values())


def our_tsne(run: Path) -> float:
    """Seconds of embedding the 2,000 images of our figure."""
    import numpy as np

    from osr_lightning.evaluation.embedding import tsne_embedding

    with np.load(run / "evaluation.npz", allow_pickle=False) as arrays:
        logits = arrays["logits"]
    begin = time.perf_counter()
    tsne_embedding(logits)
    return time.perf_counter() - begin


def notebook_run(arguments: argparse.Namespace) -> Run:
    """The notebook's protocol in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks" / "notebook_protocol.py")]
    command += ["--data-root", str(arguments.data_root), "--epochs", str(arguments.epochs)]
    command += ["--max-batches", str(arguments.max_batches)] if arguments.max_batches else []
    command += ["--tsne"] if arguments.tsne else []
    with tempfile.TemporaryDirectory() as folder:
        wall = timed_process([*command, "--output", folder])
        results = json.loads(Path(folder, "results.json").read_text())
    phases = results.pop("seconds")
    return {"seconds": {**phases, "start-up": wall - sum(phases.values())}, "results": results}


def total(run: Run) -> float:
    """Wall seconds without t-SNE."""
    return sum(seconds for phase, seconds in run["seconds"].items() if phase != "t-SNE")


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__, "study", repeats=1)
    parser.add_argument("--epochs", type=int, default=15, help="epochs of every fit of both sides")
    parser.add_argument("--max-batches", type=int, help="training batches per epoch, for a quick look")
    parser.add_argument("--tsne", action="store_true", help="time t-SNE too, apart")
    parser.add_argument("--recipe", action="store_true", help="run our own recipe too")
    parser.add_argument("--recipe-seed", type=int, default=0, help="the seed of our own recipe")
    parser.add_argument(
        "--recipe-options",
        nargs="+",
        default=[],
        metavar="OPTION=VALUE",
        help="more options of osr study, as a=b",
    )
    parser.add_argument("--skip", nargs="+", choices=(OURS, NOTEBOOK), default=[], help="sides to leave out")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    machine = start(arguments)
    limit = ["--trainer.limit_train_batches", str(arguments.max_batches)] if arguments.max_batches else []
    # in the trainer's default precision, as every other fit of ours
    same = ["--trainer.max_epochs", str(arguments.epochs), "--trainer.precision", "auto", *limit]
    # the same 2,000 unknown images as in the study
    recipe = ["--data.unknown_fraction", "0.2", "--evaluation.figures", "false", *limit]
    recipe += [f"--{option}" for option in arguments.recipe_options]
    sides: dict[str, Callable[[], Run]] = {
        OURS: lambda: our_run(arguments, same),
        NOTEBOOK: lambda: notebook_run(arguments),
        RECIPE: lambda: our_recipe(arguments, recipe),
    }
    left_out = {*arguments.skip, *([] if arguments.recipe else [RECIPE])}
    runs = interleave({n: side for n, side in sides.items() if n not in left_out}, arguments.repeats)

    walls = {name: median(map(total, found)) for name, found in runs.items()}
    for name, found in runs.items():
        phases = {phase: median(run["seconds"][phase] for run in found) for phase in found[0]["seconds"]}
        shown = [(phase, f"{value:.1f}") for phase, value in phases.items()]
        print_table(
            f"{name}: seconds, median of {arguments.repeats}",
            ["phase", "seconds"],
            [*shown, ("all but t-SNE", f"{walls[name]:.1f}")],
        )
    accuracies = {
        name: {key: median(run["results"][key] for run in found) for key in ACCURACIES}
        for name, found in runs.items()
    }
    print_table(
        "Accuracy",
        ["", *runs],
        [(label, *(f"{accuracies[name][key]:.4f}" for name in runs)) for key, label in ACCURACIES.items()],
    )
    targets = []
    if OURS in walls and NOTEBOOK in walls:
        targets += [Target("study: times faster than the notebook's way", walls[NOTEBOOK] / walls[OURS], 6)]
    if RECIPE in walls:
        reached = accuracies[RECIPE]
        targets += [
            Target("recipe: baseline's test accuracy", reached["baseline_accuracy"], BASELINE_ACCURACY),
            Target("recipe: MC dropout's total accuracy", reached["total_accuracy"], TOTAL_ACCURACY),
        ]
        if NOTEBOOK in walls:
            targets += [
                Target("recipe: times faster than the notebook's way", walls[NOTEBOOK] / walls[RECIPE], 20)
            ]
    finish(arguments, machine, {"wall_seconds": walls, "accuracy": accuracies, "runs": runs}, targets)


ACCURACIES = {
    "baseline_accuracy": "baseline: test accuracy",
    "known_accuracy": "MC dropout: known accuracy",
    "unknown_accuracy": "MC dropout: unknown accuracy",
    "total_accuracy": "MC dropout: total accuracy",
    "auroc": "MC dropout: AUROC of the score",
}


if __name__ == "__main__":
    main()
