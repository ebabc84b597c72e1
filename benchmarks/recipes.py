"""Networks on class splits of Fashion-MNIST and CIFAR-10, from scratch and pretrained, and recipes' steps.

Each of `--configs` (configs/open_set/NAME.yaml) is trained on class splits, six known and four unknown: those
of arpl and neal, which are reported, and, of configs with steps in STEPS, others that a seed draws from the
same classes, on which recipe and score were settled. There each step is tried as well. CIFAR-10's classes
also meet the far unknown sets that DATA has. Writes two sections of docs/results.md, with and without
pretraining; started again with the same --folder it goes on from where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import random
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import (
    PRETRAINED_SPLITS,
    QUIET,
    SCRATCH,
    finish,
    new_parser,
    print_table,
    quiet_lightning,
    run_osr,
    section_of,
    start,
    table_lines,
    write_section,
)
from methods import measure_rows

from osr_lightning.data.class_splits import class_splits
from osr_lightning.evaluation.report.render import read_results
from osr_lightning.evaluation.run_groups import MeasureKey, means, run_measures
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.studies.study import StudyRun, plan_runs

ROOT = Path(__file__).parents[1]
REPORTED = ("arpl", "neal")
PRETRAINED = ("cifar10_backbone",)
NEAR = "rest"  # the classes that are not known
# unknown sets of other kinds, and where they lie in the data root
FAR = {
    "notmnist": ("npz:{}", "notmnist_test.npz"),
    "fashion_mnist": ("fashion_mnist", "FashionMNIST"),
    "clothing": ("folder:{}", "clothing"),
}
DRAWN = "drawn"
DRAWN_BY = 0  # the seed
# what a step has in place of the config's, on drawn splits alone
_STUDY = ["--model.network=MCDropoutCNN", "--model.network.channels=[16, 32]", "--trainer.max_epochs=15"]
_NORM = "--model.loss=logit_norm"
_RESNET9 = [
    *("--model.network=ResNet9", "--model.network.channels=[32, 64, 128]", "--model.augment=photos"),
    *("--model.learning_rate=0.004", "--model.weight_decay=0.02", "--model.label_smoothing=0"),
]
_SMALL = [
    *("--model.network=ConvNet", "--model.network.channels=[16, 32, 64]", "--trainer.max_epochs=8"),
]
STEPS: dict[str, dict[str, list[str]]] = {
    "fashion_mnist": {
        "MCDropoutCNN": _STUDY,
        "MCDropoutCNN, logit norm": [*_STUDY, _NORM],
        "ResNet9": [*_RESNET9, "--data.batch_size=128", "--trainer.max_epochs=10"],
        "photos": ["--model.augment=photos"],
        "20 epochs": ["--trainer.max_epochs=20"],
    },
    "cifar10": {
        "small ConvNet": _SMALL,
        "small ConvNet, logit norm": [*_SMALL, _NORM],
        "15 epochs": ["--trainer.max_epochs=15"],
        "without mirror images": ["--model.mirror=false"],
    },
    "cifar10_backbone": {},
}


def drawn_splits(count: int) -> list[tuple[int, ...]]:
    """Six of ten classes, ``count`` times, none of them a published split of either set."""
    taken = {
        frozenset(one) for source in ("mnist", "cifar10") for s in REPORTED for one in published(s, source)
    }
    others = [one for one in itertools.combinations(range(10), 6) if frozenset(one) not in taken]
    return random.Random(DRAWN_BY).sample(others, 5)[:count]  # noqa: S311 - no secret


def published(splits: str, source: str) -> list[tuple[int, ...]]:
    """The known classes of each of five published splits of a set."""
    return [one.known for one in class_splits(splits, source) if one.known is not None]


def planned(arguments: Namespace) -> Iterator[StudyRun]:
    """The runs that are asked for."""
    for name in arguments.configs:
        config = ROOT / "configs" / "open_set" / f"{name}.yaml"
        options = [*QUIET, "--evaluation.bootstrap=20", f"--data.root={arguments.data_root}"]
        options += [f"--model.detectors={list(DETECTORS)}", f"--trainer.default_root_dir={arguments.folder}"]
        known = None
        if name.startswith("cifar10"):
            options.append(f"--data.unknown={json.dumps(unknown_sets(arguments.data_root))}")
            if (arguments.data_root / "cifar10" / "train").is_dir():  # as files
                known = f"folder:{arguments.data_root / 'cifar10'}"
                options.append(f"--data.known={known}")
        plan = partial(
            plan_runs, [config], [0], name=name, further=options, root=arguments.folder, known=known
        )
        for splits in arguments.splits:
            if splits != DRAWN:
                yield from (run for place, run in enumerate(plan(splits), 1) if place in arguments.numbers)
            elif STEPS.get(name):
                (run,) = plan(None)
                for number, classes in enumerate(drawn_splits(arguments.drawn), 1):
                    for step in ("", *(step for step in STEPS[name] if step in arguments.steps)):
                        tried = f"-{step.replace(' ', '_')}" if step else ""
                        place = run.folder.with_name(f"{name}{tried}-{DRAWN}{number}-seed0")
                        more = [f"--data.known_classes={list(classes)}", f"--trainer.version={place.name}"]
                        more += STEPS[name].get(step, [])
                        yield run._replace(folder=place, arguments=[*run.arguments, *more])


def train(run: StudyRun, arguments: Namespace) -> None:
    """Train and test, unless that is done; go on where it was begun."""
    if (run.folder / "results.json").is_file():
        return
    words = ["run", *run.arguments]
    words += [] if arguments.epochs is None else [f"--trainer.max_epochs={arguments.epochs}"]
    if (last := run.folder / "checkpoints" / "last.ckpt").is_file():
        words.append(f"--ckpt_path={last}")
    run_osr(words)


def unknown_sets(root: Path) -> dict[str, dict[str, str]]:
    """The classes that are not known, and what there is of other kinds."""
    far = {
        name: source.format(root / place) for name, (source, place) in FAR.items() if (root / place).exists()
    }
    return {"near": {NEAR: NEAR}, **({"far": far} if far else {})}


def main() -> None:
    """Train what is asked for, and write the section of all that is there."""
    parser = new_parser(__doc__, "recipes", None)
    parser.add_argument(
        "--configs", nargs="*", default=list(STEPS), help="of configs/open_set; none to write"
    )
    parser.add_argument("--splits", nargs="+", choices=(*REPORTED, DRAWN), default=[*REPORTED, DRAWN])
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="of published splits")
    every = [step for steps in STEPS.values() for step in steps]
    parser.add_argument("--steps", nargs="*", choices=every, default=every, help="tried on drawn splits")
    parser.add_argument("--drawn", type=int, default=5, help="splits to draw, up to 5")
    parser.add_argument("--epochs", type=int, help="those of the configs if not given")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results" / "recipes")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="goes here")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    for run in planned(arguments):
        train(run, arguments)
    found = collect(arguments.folder)
    for title, lines in SECTIONS.items():
        own = {n: r for n, r in found.items() if (r["config"] in PRETRAINED) == (title == PRETRAINED_SPLITS)}
        if own:
            page = arguments.page.read_text(encoding="utf-8") if arguments.page.is_file() else ""
            told = {**by_config(section_of(page, title)), **tables(own)}
            further = [line for config in sorted(told) for line in told[config]]
            write_section(arguments.page, title, [*lines, *further], "# Results\n")
    rows = [(name, f"{100 * run['closed']:.2f}", f"{100 * run['auroc']:.2f}") for name, run in found.items()]
    print_table("Class splits", ["run", "closed set", "AUROC of its score"], rows)
    finish(arguments, machine, {"runs": {n: {k: r[k] for k in PLAIN} for n, r in found.items()}}, [])


PLAIN = ("closed", "auroc", "score", "fit_s")
Found = dict[str, dict]


def collect(folder: Path) -> Found:
    """What every finished run reached, by its name."""
    found: Found = {}
    for path in sorted(folder.glob("lightning_logs/*/*/results.json")):
        results = read_results(path.parent)
        measures, score = run_measures(results), str(results["score"]["name"])
        found[path.parent.name] = {
            "config": path.parents[1].name,
            "measures": measures,
            "score": score,
            "closed": measures[MeasureKey("closed_set_accuracy", "", "")],
            "auroc": measures[MeasureKey("auroc", score, NEAR)],
            "fit_s": (results.get("timing") or {}).get("fit_s"),
        }
    return found


SECTIONS = {
    SCRATCH: [
        "Written by `python benchmarks/recipes.py --data-root DATA` (seed 0 of weights; all finished runs",
        "of its folder are here, `--configs`, `--splits` and `--numbers` choose what is trained; a config",
        "without runs there keeps its tables). Six classes known, four unknown, networks of random weights,",
        "recipes of `configs/open_set`, settled on splits drawn from the same classes",
        "([how](recipes.md#what-they-brought)); that of `cifar10` looks at each test image and its mirror",
        "image (`model.mirror`). In percent, mean ± sample standard deviation over splits.",
    ],
    PRETRAINED_SPLITS: [
        "Written by `python benchmarks/recipes.py --data-root DATA --configs cifar10_backbone`: the splits",
        "of the section above, seen by efficientnet_lite0, trained on ImageNet and frozen, whose last layer",
        "learns from all training pictures of the known classes. ImageNet has pictures of most of the ten",
        "classes, unknown ones among them, so that these numbers do not compare with those from scratch.",
    ],
}


def by_config(section: list[str]) -> dict[str, list[str]]:
    """A section's lines below each ``### `config```, from an empty one before it on."""
    found: dict[str, list[str]] = {}
    for line in section:
        if line.startswith("### `"):
            found[line.split("`")[1]] = ["", line]
        elif found:
            found[next(reversed(found))].append(line)
    return {config: "\n".join(lines).rstrip().split("\n") for config, lines in found.items()}


def tables(found: Found) -> dict[str, list[str]]:
    """The tables of each config."""
    told: dict[str, list[str]] = {}
    for config in dict.fromkeys(run["config"] for run in found.values()):
        groups = {
            splits: {n: r for n, r in found.items() if n.startswith(f"{config}-{splits}")}
            for splits in (*REPORTED, DRAWN)
        }
        groups = {splits: runs for splits, runs in groups.items() if runs}
        lines = ["", f"### `{config}`"]
        lines += ["", *scores_table(groups)] if groups else []
        steps = {n: r for n, r in found.items() if n.startswith(f"{config}-") and f"-{DRAWN}" in n}
        if len(steps) > 1:
            lines += ["", *steps_table(config, steps)]
        told[config] = lines
    return told


def scores_table(groups: dict[str, Found]) -> list[str]:
    """Accuracy and the AUROC of every score, a column for each set of splits."""
    measures = {splits: means(r["measures"] for r in runs.values()) for splits, runs in groups.items()}
    told = [
        ", ".join(name.partition("-seed")[0].rpartition(splits)[2] for name in runs)
        for splits, runs in groups.items()
    ]
    scores = dict.fromkeys(m.score for one in measures.values() for m in one if m.name == "auroc")
    rows = {"closed-set accuracy": MeasureKey("closed_set_accuracy", "", "")}
    own = {r["score"] for s in groups if s != DRAWN for r in groups[s].values()}
    for score in scores:
        title = f"**`{score}`**, the config's" if own == {score} else f"`{score}`"
        rows[f"AUROC of {title}"] = MeasureKey("auroc", score, NEAR)
        for far in FAR if own == {score} else ():
            rows[f"the same, `{far}` unknown"] = MeasureKey("auroc", score, far)
    rows = {title: one for title, one in rows.items() if any(one in found for found in measures.values())}
    cells = measure_rows(rows, measures.values())
    return table_lines(("", *(f"`{s}`" for s in groups)), [["splits", *told], *cells])


def steps_table(config: str, steps: Found) -> list[str]:
    """What each step changed, split by split."""
    shown = ("fisher", "vim", "knn", "generalized_entropy", "max_logit", "energy")
    order = {step: place for place, step in enumerate((*STEPS.get(config, {}), ""))}
    rows: list[tuple[str, int, list[str]]] = []  # split, place of the step, cells
    for name, run in steps.items():
        step, _, number = name.partition("-seed")[0].removeprefix(config).rpartition(f"-{DRAWN}")
        step = step.strip("-").replace("_", " ")
        values = [run["closed"], *(run["measures"].get(MeasureKey("auroc", score, NEAR)) for score in shown)]
        cells = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        rows.append((number, order.get(step, len(order)), [step or "the config", number, *cells]))
    lines = [f"Steps that were tried, on splits that seed {DRAWN_BY} drew:", ""]
    header = ("", "split", "closed set", *(f"AUROC of `{s}`" for s in shown))
    return lines + table_lines(header, [row for *_, row in sorted(rows)])


if __name__ == "__main__":
    main()
