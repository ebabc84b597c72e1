"""Every score and detector, by a plain network and MC dropout, on many unknown sets and on class splits.

Trains with `osr study --ensemble`: configs/near_far.yaml, and configs/open_set/mnist.yaml on the five splits
of arpl and the five of neal, each as it is (MC dropout) and with a plain network, for each seed. No unknown
image is seen before the test. Writes docs/results.md; started again with the same --folder it goes on from
where it was stopped.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
import yaml
from common import (
    OTHERS_CODE,
    PRETRAINED,
    PRETRAINED_SPLITS,
    QUIET,
    SCRATCH,
    finish,
    interleave,
    new_parser,
    print_table,
    put_section,
    quiet_lightning,
    run_osr,
    section_of,
    start,
    table_lines,
)

from osr_lightning import load
from osr_lightning.evaluation.report.render import read_results
from osr_lightning.evaluation.run_groups import ALL, Mean, MeasureKey, mean_text, means, run_measures
from osr_lightning.scoring.detectors import DETECTORS

ROOT = Path(__file__).parents[1]
KINDS = {"plain": "BaselineClassifier", "MC dropout": "MCDropoutClassifier"}
SPLITS = ("arpl", "neal")
NEAR = "near_far"
# AUROC as published; what was looked at, beside known images, before the test
PUBLISHED = {
    "notMNIST, Fashion-MNIST, CIFAR-10": [
        (
            "OpenOOD v1, MDS (LeNet)",
            "99.67 / 98.88 / 99.88",
            "layers weighed with notMNIST validation images",
        ),
        (
            "OpenOOD v1, GMM (LeNet)",
            "99.79 / 99.80 / 99.97",
            "layer weights of unstated origin; 99.94 on Texture",
        ),
    ],
    "MNIST, six known and four unknown": [
        ("softmax (Neal et al., ECCV 2018)", "97.8", "nothing"),
        ("RPL (Chen et al., ECCV 2020)", "98.9", "nothing"),
        ("CROSR (Yoshihashi et al., CVPR 2019), CAC (Miller et al., WACV 2021)", "99.1", "nothing"),
        ("DSC", "99.6", "background images in training"),
    ],
}
Found = dict[MeasureKey, Mean]
Tables = dict[str, dict[str, Found]]  # by `NEAR` or a name of class splits, then by kind of network


def main() -> None:
    parser = new_parser(__doc__, "methods", repeats=5)
    parser.add_argument("--notmnist", type=Path, help="notMNIST's test images; data-root/notmnist_test.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="also of each class split")
    parser.add_argument("--epochs", type=int, help="those of the configs if not given")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results" / "methods")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="goes here")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    known = [f"--data.root={arguments.data_root}", f"--trainer.default_root_dir={arguments.folder}", *QUIET]
    known.append("--evaluation.bootstrap=20")
    if arguments.epochs is not None:
        known.append(f"--trainer.max_epochs={arguments.epochs}")
    known.append(f"--model.detectors={list(DETECTORS)}")
    near = near_options(arguments.data_root, arguments.notmnist)
    tables: Tables = {name: {} for name in (NEAR, *SPLITS)}
    for kind, name in KINDS.items():
        options = [f"--model.class_path={name}", *known]
        config = ROOT / "configs" / "near_far.yaml"
        tables[NEAR] |= study(arguments, kind, name, config, [*near, *options])
        for splits in SPLITS:
            config = ROOT / "configs" / "open_set" / "mnist.yaml"
            words = ["--splits", splits, *options]
            tables[splits] |= study(arguments, kind, f"{splits}-{name}", config, words)
    costs = cost(arguments.folder, arguments.seeds[0], arguments.repeats)
    page = write(tables, costs, arguments)
    earlier = arguments.page.read_text(encoding="utf-8") if arguments.page.is_file() else ""
    for title in (PRETRAINED, SCRATCH, PRETRAINED_SPLITS, OTHERS_CODE):  # which other benchmarks write
        if section := section_of(earlier, title):
            page = put_section(page, title, section)
    arguments.page.write_text(page, encoding="utf-8")
    print_table("Cost", ["", "single passes per image"], [(k, f"{v:.2f}") for k, v in costs.items()])
    finish(arguments, machine, {"costs": costs, "page": str(arguments.page)}, [])


def near_options(root: Path, notmnist: Path | None) -> list[str]:
    """The unknown sets of configs/near_far.yaml, with what lies in the data folder."""
    unknown = yaml.safe_load((ROOT / "configs/near_far.yaml").read_text())["data"]["unknown"]
    unknown["near"]["notmnist"] = f"npz:{notmnist or root / 'notmnist_test.npz'}"
    if (folder := root / "cifar10" / "test").is_dir():  # the test images as files
        unknown["far"]["cifar10"] = f"folder:{folder}"
    return [f"--data.unknown={json.dumps(unknown)}"]


def study(
    arguments: Namespace, kind: str, name: str, config: Path, options: Sequence[str]
) -> dict[str, Found]:
    """Run one study, and give the means of what its runs reached: alone, and the seeds joined."""
    count = len(arguments.seeds)
    joins = ["--ensemble"] if count > 1 else []
    seeds = map(str, arguments.seeds)
    run_osr(["study", str(config), "--seeds", *seeds, *joins, "--name", name, *options])
    runs = arguments.folder / "lightning_logs" / name
    ways = {kind: "*-seed*", **({f"{kind}, {count} joined": f"*-ensemble{count}"} if joins else {})}
    return {
        title: means(run_measures(read_results(path)) for path in sorted(runs.glob(pattern)))
        for title, pattern in ways.items()
    }


def cost(folder: Path, seed: int, repeats: int) -> dict[str, float]:
    """Time per image of a whole decision, in passes of the plain network alone, taken in turn."""
    paths = {
        kind: folder / "lightning_logs" / name / f"near_far-seed{seed}" / "checkpoints" / "best.ckpt"
        for kind, name in KINDS.items()
    }
    recognisers = {kind: load(path) for kind, path in paths.items()}
    spec = next(iter(recognisers.values())).spec
    images = torch.randint(0, 256, (5120, *spec.input_shape), dtype=torch.uint8)
    network = recognisers["plain"].sampler.network
    sides = {"one pass": lambda: timed(lambda b: network(recognisers["plain"].standardise(b)), images)}
    for kind, recogniser in recognisers.items():
        sides[f"{kind}, decided by {recogniser.threshold.score}"] = lambda r=recogniser: timed(r, images)
    with torch.inference_mode():
        for recogniser in recognisers.values():
            recogniser.eval()
        runs = interleave(sides, repeats)
    middle = {name: sorted(found)[len(found) // 2] for name, found in runs.items()}
    return {name: seconds / middle["one pass"] for name, seconds in middle.items()}


def timed(function, images: torch.Tensor) -> float:  # noqa: ANN001 - an image batch to anything
    begin = time.perf_counter()
    for batch in torch.split(images, 512):
        function(batch)
    return time.perf_counter() - begin


def write(tables: Tables, costs: dict[str, float], arguments: Namespace) -> str:
    """The page."""
    seeds = " ".join(map(str, arguments.seeds))
    lines = [
        "# Results",
        "",
        f"Written by `python benchmarks/methods.py --data-root DATA` (seeds {seeds}).",
        "No unknown image is seen before the test. AUROC, FPR95 (unknown images accepted when 95% of the",
        "known ones are) and accuracies in percent, mean ± sample standard deviation over seeds and splits.",
        "*Joined* is `osr ensemble` of the seeds.",
        "",
        "## Digits against many unknown sets",
        "",
    ]
    for kind, found in tables[NEAR].items():
        accuracy = mean_text(found.get(MeasureKey("closed_set_accuracy", "", "")))
        lines += [f"### {kind}: closed-set accuracy {accuracy}", "", *score_table(found), ""]
    for splits in SPLITS:
        lines += [f"## Six digits known, four unknown: `{splits}`", "", *split_table(tables[splits]), ""]
    passes = [(name, f"{value:.2f}") for name, value in costs.items()]
    lines += ["## Cost of a decision", "", *table_lines(("", "passes of the plain network"), passes)]
    for title, rows in PUBLISHED.items():
        lines += ["", f"## Published: {title}", "", *table_lines(("method", "AUROC", "looked at"), rows)]
    return "\n".join(lines) + "\n"


def score_table(found: Found) -> list[str]:
    sets = [s for s in dict.fromkeys(m.unknown_set for m in found if m.name == "auroc") if s != ALL]
    scores = dict.fromkeys(m.score for m in found if m.name == "auroc")

    def cell(score: str, one: str) -> str:
        both = (found.get(MeasureKey(name, score, one)) for name in ("auroc", "fpr95_known"))
        return " / ".join(map(mean_text, both))

    rows = ([f"`{score}`", *(cell(score, one) for one in sets)] for score in scores)
    return table_lines(("AUROC / FPR95", *sets), rows)


def split_table(tables: dict[str, Found]) -> list[str]:
    rows = {
        "closed-set accuracy": MeasureKey("closed_set_accuracy", "", ""),
        "OpenAUC": MeasureKey("openauc", "", ALL),
        "OSCR": MeasureKey("oscr", "", ALL),
    }
    scores = dict.fromkeys(m.score for found in tables.values() for m in found if m.name == "auroc")
    rows |= {f"AUROC of `{score}`": MeasureKey("auroc", score, ALL) for score in scores}
    return table_lines(("", *tables), measure_rows(rows, tables.values()))


def measure_rows(rows: dict[str, MeasureKey], columns: Collection[Found]) -> Iterator[list[str]]:
    """Of each measure its title, and what it is in each column."""
    for title, measure in rows.items():
        yield [title, *(mean_text(found.get(measure)) for found in columns)]


if __name__ == "__main__":
    main()
