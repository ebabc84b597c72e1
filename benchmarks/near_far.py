"""Every score on near and far unknown sets, over seeds; whether thresholds keep their promise on real data.

Trains both classifiers with configs/near_far.yaml for each seed (seed of the weights, of the split and of the
masks) through the command line, no unknown image used before the test. Then, as configs/mc_dropout.yaml has
it, calibrates the same checkpoints for a share of 1 known image in 500 and tests them on MNIST and 2,000 of
CIFAR-10's images.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from common import QUIET, Target, console, finish, new_parser, print_table, quiet_lightning, run_osr, start

CONFIGS = Path(__file__).parents[1] / "configs"
CLASSIFIERS = ("BaselineClassifier", "MCDropoutClassifier")


def main() -> None:
    parser = new_parser(__doc__, "near_far", repeats=None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--classifiers", nargs="+", default=list(CLASSIFIERS), choices=CLASSIFIERS)
    parser.add_argument("--epochs", type=int, help="those of the config if not given")
    parser.add_argument("--detectors", nargs="*", default=[], help="fitted scores to add to the table")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.classifiers:
            runs[name] = [run(arguments, name, seed, Path(folder)) for seed in arguments.seeds]
    targets = []
    for name, results in runs.items():
        print_scores(name, results)
        within = [r["achieved"]["known_rejected"] <= r["achieved"]["bound"] for r in results]
        print_table(
            f"{name}: known test images rejected at alpha = 5%; total accuracy with 2,000 of CIFAR-10",
            ["seed", "rejected", "bound", "total accuracy at alpha = 0.2%"],
            [
                (
                    seed,
                    f"{r['achieved']['known_rejected']:.2%}",
                    f"{r['achieved']['bound']:.2%}",
                    f"{r['total_accuracy']:.2%}",
                )
                for seed, r in zip(arguments.seeds, results, strict=True)
            ],
        )
        targets += [
            Target(f"{name}: share of seeds within the bound", mean(within), 0.9),
            Target(f"{name}: mean total accuracy", mean(r["total_accuracy"] for r in results), 0.992),
        ]
    finish(arguments, machine, {"runs": runs}, targets)


def run(arguments: Any, classifier: str, seed: int, folder: Path) -> dict[str, Any]:  # noqa: ANN401
    """Train, test near and far, and test once more as the default recipe does."""
    root = arguments.data_root
    config = yaml.safe_load((CONFIGS / "near_far.yaml").read_text())
    near_far, init_args = config["data"]["unknown"], config["model"]["init_args"]
    near_far["near"]["notmnist"] = f"npz:{root}/notmnist_test.npz"
    near_far["far"]["cifar10"] = f"folder:{root}/cifar10/test"
    here = [f"--trainer.default_root_dir={folder}", f"--trainer.experiment={classifier}{seed}", *QUIET]
    command = ["run", f"--config={CONFIGS}/near_far.yaml", f"--model={classifier}", f"--data.root={root}"]
    command += [f"--data.unknown={json.dumps(near_far)}", f"--seed_everything={seed}", f"--data.seed={seed}"]
    command += [f"--model.{name}={value}" for name, value in init_args.items()]
    if classifier == "MCDropoutClassifier":
        command.append(f"--model.mask_seed={seed}")
    if arguments.detectors:
        command.append(f"--model.detectors={json.dumps(arguments.detectors)}")
    if arguments.epochs is not None:
        command.append(f"--trainer.max_epochs={arguments.epochs}")
    runs = folder / "lightning_logs" / f"{classifier}{seed}"
    run_osr([*command, *here])
    results: dict[str, Any] = json.loads((runs / "version_0" / "results.json").read_text())
    checkpoint = f"--ckpt_path={runs}/version_0/checkpoints/best.ckpt"
    strict = f"{folder}/strict.ckpt"
    run_osr(["calibrate", checkpoint, "--model.alpha=0.002", f"--output={strict}", *here[:-2]])
    cifar = f"--data.unknown={json.dumps({'cifar10': near_far['far']['cifar10']})}"
    run_osr(["test", f"--ckpt_path={strict}", cifar, "--data.unknown_fraction=0.2", *here])
    second = json.loads((runs / "version_2" / "results.json").read_text())
    results["total_accuracy"] = second["open_set"]["total_accuracy"]
    console.print(f"{classifier} seed {seed}: total accuracy {results['total_accuracy']:.4f}")
    return results


def print_scores(name: str, results: list[dict[str, Any]]) -> None:
    """Mean over seeds of AUROC and FPR95 (unknowns accepted when 95% of knowns are), times 100."""
    sets = list(results[0]["unknown"])
    rows = []
    for score in results[0]["scores"]:
        row = [score]
        for each in sets:
            found = [r["scores"][score]["unknown"][each] for r in results]
            auroc, fpr95 = (100 * mean(f[key] for f in found) for key in ("auroc", "fpr95_known"))
            row.append(f"{auroc:.2f} / {fpr95:.2f}")
        rows.append(row)
    print_table(f"{name}: AUROC / FPR95, mean of {len(results)} seeds", ["score", *sets], rows)


if __name__ == "__main__":
    main()
