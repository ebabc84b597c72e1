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
from pathlib import Path
from typing import NamedTuple

from common import (
    PRETRAINED_SPLITS,
    SCRATCH,
    finish,
    new_parser,
    print_table,
    quiet_lightning,
    start,
    write_section,
)

from osr_lightning.__main__ import main as osr
from osr_lightning.data.class_splits import class_splits
from osr_lightning.evaluation.report.render import read_results
from osr_lightning.evaluation.run_groups import MeasureKey, mean_text, means, run_measures
from osr_lightning.scoring.detectors import DETECTORS

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
QUIET = ("--evaluation.figures=false", "--evaluation.projector_points=0", "--evaluation.bootstrap=20")
# what a step has in place of the config's, on drawn splits alone
_CROSS = "--model.loss=cross_entropy"
_RESNET9 = [
    *("--model.network=ResNet9", "--model.network.channels=[32, 64, 128]", "--model.augment=photos"),
    *("--model.learning_rate=0.004", "--model.weight_decay=0.02", "--model.label_smoothing=0"),
]
_SMALL = [
    *("--model.network=ConvNet", "--model.network.channels=[16, 32, 64]", "--trainer.max_epochs=8"),
]
STEPS: dict[str, dict[str, list[str]]] = {
    "fashion_mnist": {
        "cross entropy": [_CROSS],
        "cross entropy, photos": [_CROSS, "--model.augment=photos", "--model.weight_decay=0.05"],
        "cross entropy, ResNet9": [_CROSS, *_RESNET9, "--data.batch_size=128", "--trainer.max_epochs=10"],
        "weight decay": ["--model.weight_decay=0.05"],
        "wider": [
            *("--model.network=MCDropoutCNN", "--model.network.channels=[32, 64]"),
            "--model.network.hidden=256",
        ],
    },
    "cifar10": {
        "a fifth validates": ["--data.val_fraction=0.2"],
        "small ConvNet": _SMALL,
        "small ConvNet, logit norm": [*_SMALL, "--model.loss=logit_norm"],
    },
    "cifar10_backbone": {},
}


class Run(NamedTuple):
    """One training.

    Attributes:
        config: stem of its file.
        step: of STEPS; empty for the config as it is.
        splits: arpl, neal or drawn.
        number: of the split, from 1 on.
        classes: known ones.
    """

    config: str
    step: str
    splits: str
    number: int
    classes: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        step = f"-{self.step.replace(' ', '_')}" if self.step else ""
        return f"{self.config}{step}-{self.splits}{self.number}-seed0"


def drawn_splits(count: int) -> list[tuple[int, ...]]:
    """Six of ten classes, ``count`` times, none of them a published split of either set."""
    taken = {
        frozenset(one) for source in ("mnist", "cifar10") for s in REPORTED for one in published(s, source)
    }
    others = [one for one in itertools.combinations(range(10), 6) if frozenset(one) not in taken]
    return random.Random(DRAWN_BY).sample(others, 5)[:count]  # noqa: S311 - no secret


def published(splits: str, config: str) -> list[tuple[int, ...]]:
    """The known classes of each of five published splits."""
    return [one.known for one in class_splits(splits, config) if one.known is not None]


def planned(arguments: Namespace) -> Iterator[Run]:
    """The runs that are asked for."""
    for config in arguments.configs:
        for splits in arguments.splits:
            if splits == DRAWN:
                if not STEPS.get(config):
                    continue
                steps = ("", *(step for step in STEPS[config] if step in arguments.steps))
                for number, classes in enumerate(drawn_splits(arguments.drawn), 1):
                    yield from (Run(config, step, splits, number, classes) for step in steps)
            else:
                for number, classes in enumerate(published(splits, config), 1):
                    if number in arguments.numbers:
                        yield Run(config, "", splits, number, classes)


def train(run: Run, arguments: Namespace) -> None:
    """Train and test, unless that is done; go on where it was begun."""
    folder = arguments.folder / "lightning_logs" / run.config / run.name
    if (folder / "results.json").is_file():
        return
    words = ["run", f"--config={ROOT / 'configs' / 'open_set' / f'{run.config}.yaml'}", *QUIET]
    words += [f"--data.root={arguments.data_root}", f"--data.known_classes={list(run.classes)}"]
    if run.config.startswith("cifar10"):
        words.append(f"--data.unknown={json.dumps(unknown_sets(arguments.data_root))}")
        if (arguments.data_root / "cifar10" / "train").is_dir():  # as files
            words.append(f"--data.known=folder:{arguments.data_root / 'cifar10'}")
    words += [f"--model.detectors={list(DETECTORS)}", f"--trainer.default_root_dir={arguments.folder}"]
    words += [f"--trainer.experiment={run.config}", f"--trainer.version={run.name}", "--seed_everything=0"]
    words += STEPS.get(run.config, {}).get(run.step, [])
    words += [] if arguments.epochs is None else [f"--trainer.max_epochs={arguments.epochs}"]
    if (last := folder / "checkpoints" / "last.ckpt").is_file():
        words.append(f"--ckpt_path={last}")
    if status := osr(words):
        raise SystemExit(status)


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
            write_section(arguments.page, title, [*lines, *tables(own)], "# Results\n")
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
        "of its folder are here, `--configs`, `--splits` and `--numbers` choose what is trained). Six",
        "classes known, four unknown, networks of random weights, recipes of `configs/open_set`, settled on",
        "splits drawn from the same classes ([how](recipes.md#what-they-brought)). In percent, mean ± sample",
        "standard deviation over splits.",
    ],
    PRETRAINED_SPLITS: [
        "Written by `python benchmarks/recipes.py --data-root DATA --configs cifar10_backbone`: the splits",
        "of the section above, seen by efficientnet_lite0, trained on ImageNet and frozen, whose last layer",
        "learns from all training pictures of the known classes. ImageNet has pictures of most of the ten",
        "classes, unknown ones among them, so that these numbers do not compare with those from scratch.",
    ],
}


def tables(found: Found) -> list[str]:
    """The tables of each config."""
    lines: list[str] = []
    for config in dict.fromkeys(run["config"] for run in found.values()):
        groups = {
            splits: {n: r for n, r in found.items() if n.startswith(f"{config}-{splits}")}
            for splits in (*REPORTED, DRAWN)
        }
        groups = {splits: runs for splits, runs in groups.items() if runs}
        lines += ["", f"### `{config}`"]
        lines += ["", *scores_table(groups)] if groups else []
        steps = {n: r for n, r in found.items() if n.startswith(f"{config}-") and f"-{DRAWN}" in n}
        if len(steps) > 1:
            lines += ["", *steps_table(config, steps)]
    return lines


def scores_table(groups: dict[str, Found]) -> list[str]:
    """Accuracy and the AUROC of every score, a column for each set of splits."""
    measures = {splits: means(r["measures"] for r in runs.values()) for splits, runs in groups.items()}
    lines = ["| | " + " | ".join(f"`{s}`" for s in groups) + " |"]
    lines.append("|---|" + "---|" * len(groups))
    told = {
        splits: ", ".join(n.partition("-seed")[0].rpartition(splits)[2] for n in r)
        for splits, r in groups.items()
    }
    lines.append("| splits | " + " | ".join(told.values()) + " |")
    scores = dict.fromkeys(m.score for one in measures.values() for m in one if m.name == "auroc")
    rows = {"closed-set accuracy": MeasureKey("closed_set_accuracy", "", "")}
    own = {r["score"] for s in groups if s != DRAWN for r in groups[s].values()}
    for score in scores:
        title = f"**`{score}`**, the config's" if own == {score} else f"`{score}`"
        rows[f"AUROC of {title}"] = MeasureKey("auroc", score, NEAR)
        for far in FAR if own == {score} else ():
            rows[f"the same, `{far}` unknown"] = MeasureKey("auroc", score, far)
    for title, measure in rows.items():
        if any(measure in one for one in measures.values()):
            cells = [mean_text(one.get(measure)) for one in measures.values()]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def steps_table(config: str, steps: Found) -> list[str]:
    """What each step changed, split by split."""
    shown = ("fisher", "vim", "knn", "generalized_entropy", "max_logit", "energy")
    lines = [f"Steps that were tried, on splits that seed {DRAWN_BY} drew:", ""]
    lines.append("| | split | closed set | " + " | ".join(f"AUROC of `{s}`" for s in shown) + " |")
    lines.append("|---|---|---|" + "---|" * len(shown))
    order = {step: place for place, step in enumerate((*STEPS.get(config, {}), ""))}
    rows: list[tuple[str, int, str]] = []  # split, place of the step, line
    for name, run in steps.items():
        step, _, number = name.partition("-seed")[0].removeprefix(config).rpartition(f"-{DRAWN}")
        step = step.strip("-").replace("_", " ")
        values = [run["closed"], *(run["measures"].get(MeasureKey("auroc", score, NEAR)) for score in shown)]
        cells = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        label = step or "the config"
        rows.append((number, order.get(step, len(order)), f"| {label} | {number} | {' | '.join(cells)} |"))
    return lines + [row for *_, row in sorted(rows)]


if __name__ == "__main__":
    main()
