"""Published open-set benchmarks from end to end, on a machine with a GPU: run it, keep the JSON and table.

``--benchmark cifar10`` trains the six known classes of CIFAR-10 in ARPL's five splits and in Neal's, and,
where OpenOOD's lists lie in the data root, all ten against its near and far sets, each with five seeds: 55
runs of ``osr study``. The others are ``svhn``, ``cifar_plus`` (10 and 50), ``tiny_imagenet``,
``fine_grained`` (the Semantic Shift Benchmark) and ``openood_cifar100``.

Started again with the same ``--folder``, it skips what is finished and goes on with what was stopped;
``--shard`` gives a part of the runs to each of several machines or GPUs that share it. The files are written
again after every study, of the runs that are finished. Further options are those of ``osr run`` and hold for
every run.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import QUIET, console, finish, new_parser, quiet_lightning, run_osr, start, table_lines

from osr_lightning.atomic_write import write_text
from osr_lightning.evaluation.run_groups import Mean, mean_of, mean_text
from osr_lightning.studies.study import StudyRun, plan_runs

CONFIGS = Path(__file__).parents[1] / "configs" / "open_set"


class Study(NamedTuple):
    """A config with one of its split sets.

    Attributes:
        config: its file's name in configs/open_set.
        splits: of ``osr study --splits``.
        needs: a folder in the data root without which it is left out; empty where torchvision downloads.
    """

    config: str
    splits: str
    needs: str = ""


BENCHMARKS = {
    "cifar10": (
        Study("cifar10", "arpl"),
        Study("cifar10", "neal"),
        Study("openood_cifar10", "openood", "benchmark_imglist/cifar10"),
    ),
    "svhn": (Study("svhn", "arpl"),),
    "cifar_plus": (Study("cifar_plus_10", "arpl_plus_10"), Study("cifar_plus_50", "arpl_plus_50")),
    "tiny_imagenet": (Study("tiny_imagenet", "arpl", "tiny-imagenet-200"),),
    "fine_grained": (
        Study("cub", "ssb", "CUB_200_2011"),
        Study("aircraft", "ssb"),
        Study("cars", "ssb", "stanford_cars"),
    ),
    "openood_cifar100": (Study("openood_cifar100", "openood", "benchmark_imglist/cifar100"),),
}


def main() -> None:
    arguments, further = parse_arguments()
    machine = start(arguments)
    machine["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    begun = time.perf_counter()
    quiet_lightning()
    results: dict[str, Any] = {"studies": {}, "left_out": {}}
    for benchmark in arguments.benchmark:
        for study in BENCHMARKS[benchmark]:
            name = f"{study.config}-{study.splits}"
            if study.needs and not (arguments.data_root / study.needs).exists():
                results["left_out"][name] = f"needs {arguments.data_root / study.needs}"
            elif (found := run(arguments, study, name, further)) is not None:  # else all is another shard's
                results["studies"][name] = found
            results["seconds"] = time.perf_counter() - begun
            write_text(arguments.json.with_suffix(".md"), markdown(results, machine))
            finish(arguments, machine, results, [])
    console.print(markdown(results, machine), markup=False)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = new_parser(__doc__, "open_set", repeats=None)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--benchmark", nargs="+", choices=BENCHMARKS, default=["cifar10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the trainings")
    parser.add_argument("--folder", type=Path, default=Path("open_set_runs"), help="of the runs")
    parser.add_argument("--shard", metavar="I/N", help="the I-th of N parts of each study's runs")
    parser.add_argument(
        "--cifar10",
        metavar="SOURCE",
        help="CIFAR-10 for the splits of its classes, as in folder:DATA/cifar10; torchvision's if not given",
    )
    return parser.parse_known_args()


def run(
    arguments: argparse.Namespace, study: Study, name: str, further: Sequence[str]
) -> dict[str, Any] | None:
    """One study, or a part of it: its finished runs, and their means."""
    options = [*QUIET, f"--data.root={arguments.data_root}", f"--trainer.default_root_dir={arguments.folder}"]
    own = arguments.cifar10 if study.config in ("cifar10", "cifar_plus_10", "cifar_plus_50") else None
    options += [f"--data.known={own}"] if own else []
    options += further
    config = CONFIGS / f"{study.config}.yaml"
    words = ["study", str(config), "--splits", study.splits, "--name", name]
    words += ["--seeds", *map(str, arguments.seeds)]
    words += ["--shard", arguments.shard] if arguments.shard else []
    run_osr([*words, *options])
    runs = plan_runs([config], arguments.seeds, study.splits, name, options, root=arguments.folder, known=own)
    return summary(runs)


def summary(runs: Sequence[StudyRun]) -> dict[str, Any] | None:
    """What the finished runs of a study reached, and the means over splits and seeds; None without any."""
    finished = [run for run in runs if (run.folder / "report.html").is_file()]
    found = [json.loads((run.folder / "results.json").read_text()) for run in finished]
    if not found:
        return None
    each = [
        {
            "split": run.split,
            "seed": run.seed,
            "seconds": sum(results["timing"][part] or 0 for part in ("fit_s", "calibrate_s", "test_s")),
            "closed set": results["closed_set"]["accuracy"],
            "OSCR": results["open_set"]["oscr"],
            **{f"AUROC {name}": one["auroc"] for name, one in results["unknown"].items()},
            # of a group, the mean of its sets
            **{f"AUROC {name}": one["auroc"] for name, one in (results.get("groups") or {}).items()},
        }
        for run, results in zip(finished, found, strict=True)
    ]
    first = found[0]
    return {
        "network": first["model"]["network"],
        "score": first["score"]["name"],
        "runs": len(each),
        "of": len(runs),
        "shown": [f"AUROC {name}" for name in first.get("groups") or first["unknown"]],
        "means": {
            name: mean_of([one[name] for one in each])._asdict()
            for name in each[0]
            if name not in ("split", "seed")
        },
        "each": each,
    }


def markdown(results: dict[str, Any], machine: dict[str, Any]) -> str:
    """A line per study, mean ± standard deviation over its runs, in percent."""
    lines = [
        f"On {machine['device']} (`python benchmarks/open_set.py`); mean ± standard deviation over splits",
        "and seeds, in percent; of near and far sets the mean of their sets.",
        "",
    ]
    header = ("config", "splits", "network", "score", "runs", "closed set", "AUROC", "OSCR", "seconds a run")
    rows = []
    for name, found in results["studies"].items():
        config, _, splits = name.rpartition("-")
        means = {measure: Mean(**mean) for measure, mean in found["means"].items()}
        ranked = [f"{one.removeprefix('AUROC ')} {mean_text(means[one])}" for one in found["shown"]]
        row = [
            f"`{config}.yaml`",
            f"`{splits}`",
            found["network"],
            f"`{found['score']}`",
            f"{found['runs']} of {found['of']}",
            mean_text(means["closed set"]),
            ", ".join(ranked),
            mean_text(means["OSCR"]),
            f"{means['seconds'].mean:.0f}",
        ]
        rows.append(row)
    lines += table_lines(header, rows)
    lines += [f"\n{name} is left out: it {why}." for name, why in results["left_out"].items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
