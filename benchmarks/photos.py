"""Photographs with a frozen backbone: every score, every detector and Fisher sums, on class splits.

Known and unknown classes are those of clothing photographs (six and four, five draws) and of CIFAR-10's test
images (airplane, cat, frog and truck; six and four, the five splits of neal; all ten against letters and
clothes in grey). All meet pictures that are no photographs: one colour, gradients and noise. A fifth of each
known class is tested; the rest, or 20 pictures a class, train and validate. Each run is what `osr run` does;
for the tables of scores and sums with all detectors, and their thresholds by validation images alone, however
few. No unknown image is seen before the test. Features are kept in OSR_CACHE_DIR. Sums add -log p of scores
among validation images, as fisher does. Writes a section of docs/results.md; started again with the same
--folder it goes on from where it was stopped.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from common import (
    PRETRAINED,
    Target,
    console,
    finish,
    new_parser,
    print_table,
    quiet_lightning,
    start,
    table_lines,
    write_section,
)
from lightning import seed_everything
from numpy.typing import NDArray
from scipy.stats import betabinom, binom
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torchvision.datasets import FashionMNIST

from osr_lightning import MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.data.class_splits import NEAL
from osr_lightning.data.npz import load_npz
from osr_lightning.evaluation.measures.ranking import share95
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.models.backbones import DEFAULT_NAME, Backbone
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.detectors.surprise import surprise, tail_slopes
from osr_lightning.scoring.quantile import known_quantile
from osr_lightning.training.calibration import references
from osr_lightning.training.callbacks.evaluator import Evaluator

ROOT = Path(__file__).parents[1]
FOUR = ("airplane", "cat", "frog", "truck")
TEST_SHARE = 0.2
ALPHA = 0.05
FEW, FEW_VALIDATE = 20, 5  # pictures a class, and how many of them validate: alpha needs 19 in all
DRAWS = 5
MADE_UP, MADE_SIDE = 50, 96  # pictures of each kind that are no photographs, and their pixels a side
# what is added up; fisher's own two are generalized_entropy, twice, and direction
SUMMED = (
    *("generalized_entropy", "direction", "mahalanobis", "relative_mahalanobis", "knn", "vim", "residual"),
    *("fdbd", "nci"),
)
SHOWN_SUMS = 15
INVERSE_PENALTIES = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of scikit-learn, for features of unit variance
TARGETS: dict[str, dict[str, float]] = {  # FPR95 is to be at most that
    "clothing 6/4": {"accuracy": 0.93, "near auroc": 0.82, "far auroc": 0.98},
    "clothing 6/4, 20 a class": {"accuracy": 0.84, "near auroc": 0.74},
    "four of CIFAR-10": {"accuracy": 0.92, "near auroc": 0.80, "near fpr95": 0.70},
    "four of CIFAR-10, 20 a class": {"accuracy": 0.88, "near auroc": 0.72},
    "ten of CIFAR-10": {"notmnist auroc": 0.995, "fashion_mnist auroc": 0.995},
}
Floats = NDArray[np.float64]
Scores = dict[str, Floats]
Found = dict[str, Any]  # what one run gave


class Task(NamedTuple):
    """Known and unknown classes.

    Attributes:
        group: tasks that are averaged.
        name: of the run.
        known: class -> its pictures.
        unknown: near, far and made_up, or names of grey sets -> pictures.
        shots: pictures of a class that train and validate; None for all that are not tested.
    """

    group: str
    name: str
    known: Mapping[str, Sequence[Path]]
    unknown: Mapping[str, Sequence[Path] | Path]
    shots: int | None = None


def main() -> None:
    parser = new_parser(__doc__, "photos", repeats=None)
    parser.add_argument("--notmnist", type=Path, help="notMNIST's test images; data-root/notmnist_test.npz")
    parser.add_argument("--backbone", default=DEFAULT_NAME, help="name of the backbone")
    parser.add_argument("--weights", default="DEFAULT", help="its weights")
    parser.add_argument("--views", type=int, choices=(1, 2), default=2, help="of a picture, see Backbone")
    parser.add_argument("--groups", nargs="+", help="those alone")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results" / "photos")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md", help="gets the section")
    parser.add_argument("--quick", action="store_true", help="the first run of each group, to try it out")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    runs: dict[str, list[Found]] = {}
    for task in tasks(arguments):
        if arguments.groups and task.group not in arguments.groups:
            continue
        if arguments.quick and task.group in runs:
            continue
        runs.setdefault(task.group, []).append(measured(task, arguments))
    write_section(arguments.page, PRETRAINED, write(runs, arguments))
    print_table(
        "fisher",
        ["", "accuracy", "AUROC", "FPR95", "known rejected"],
        [(group, *headline(found)) for group, found in runs.items()],
    )
    finish(arguments, machine, {"runs": runs}, targets(runs))


# which pictures -----------------------------------------------------------------------------------------


def tasks(arguments: Namespace) -> Iterator[Task]:
    """All tasks, in the order of the page."""
    root: Path = arguments.data_root
    clothing, cifar = by_class(root / "clothing"), by_class(root / "cifar10" / "test")
    enlarged = [file for files in cifar.values() for file in files[: len(files) // 5]]
    photographs = [file for files in clothing.values() for file in files[::4]]
    names = sorted(clothing)
    plain = made_up(arguments.folder)
    for shots, note in ((None, ""), (FEW, f", {FEW} a class")):
        for draw in range(DRAWS):
            drawn = np.random.RandomState(draw).permutation(names)[:6]
            yield split(f"clothing 6/4{note}", f"clothing{draw}", clothing, drawn, enlarged, plain, shots)
        yield split(f"four of CIFAR-10{note}", "four", cifar, FOUR, photographs, plain, shots)
        for draw, places in enumerate(NEAL):
            known = [sorted(cifar)[place] for place in places]
            yield split(f"CIFAR-10 6/4{note}", f"cifar{draw}", cifar, known, photographs, plain, shots)
    if grey := grey_sets(arguments):
        yield Task("ten of CIFAR-10", "ten", cifar, {**grey, "made_up": plain})


def by_class(folder: Path) -> dict[str, list[Path]]:
    """Class -> its pictures, in order."""
    return {one.name: sorted(one.iterdir()) for one in sorted(folder.iterdir()) if one.is_dir()}


def split(
    group: str,
    name: str,
    pictures: Mapping[str, Sequence[Path]],
    known: Iterable[str],
    far: Sequence[Path],
    plain: Path,
    shots: int | None,
) -> Task:
    """Some classes as known, the others as near unknown ones."""
    chosen = {one: pictures[one] for one in sorted(map(str, known))}
    near = [file for one, files in pictures.items() if one not in chosen for file in files]
    return Task(group, name, chosen, {"near": near, "far": far, "made_up": plain}, shots)


def made_up(folder: Path) -> Path:
    """A file of pictures of one colour, of gradients between two, and of fine and coarse noise."""
    rng = np.random.RandomState(0)
    ramp = np.linspace(0, 1, MADE_SIDE)[:, None, None]
    pictures = []
    for _ in range(MADE_UP):
        first, last = rng.randint(0, 256, (2, 1, 1, 3))
        coarse = rng.randint(0, 256, (MADE_SIDE // 8, MADE_SIDE // 8, 3))
        pictures += [
            np.broadcast_to(first, (MADE_SIDE, MADE_SIDE, 3)),
            np.broadcast_to(first + ramp * (last - first), (MADE_SIDE, MADE_SIDE, 3)),
            rng.randint(0, 256, (MADE_SIDE, MADE_SIDE, 3)),
            coarse.repeat(8, 0).repeat(8, 1),
        ]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "made_up.npz", images=np.stack(pictures).astype(np.uint8))
    return folder / "made_up.npz"


def grey_sets(arguments: Namespace) -> dict[str, Path]:
    """A tenth of notMNIST's and Fashion-MNIST's test images, of those that are there, in files."""
    root: Path = arguments.data_root
    letters = arguments.notmnist or root / "notmnist_test.npz"
    found = {"notmnist": load_npz(letters).images.numpy()} if letters.is_file() else {}
    if (root / "FashionMNIST").is_dir():
        found["fashion_mnist"] = FashionMNIST(root, train=False).data.numpy()
    files = {name: arguments.folder / f"{name}.npz" for name in found}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, images in found.items():
        rows = np.random.RandomState(0).permutation(len(images))[: len(images) // 10]
        np.savez(files[name], images=images[rows])
    return files


def linked(task: Task, folder: Path) -> tuple[str, dict[str, str]]:
    """The known source and the unknown ones, as folders of links."""
    known = folder / "known"
    for name, files in task.known.items():
        rows = np.random.RandomState(0).permutation(len(files))
        count = round(TEST_SHARE * len(files))
        parts = {"test": rows[:count], "train": rows[count:]}
        if task.shots is not None:
            few = rows[count:][: task.shots]
            parts |= {"val": few[:FEW_VALIDATE], "train": few[FEW_VALIDATE:]}
        for part, chosen in parts.items():
            link(known / part / name, [files[row] for row in chosen])
    unknown = {}
    for name, found in task.unknown.items():
        if isinstance(found, Path):
            unknown[name] = f"npz:{found}"
        else:
            link(folder / name, found)
            unknown[name] = f"folder:{folder / name}"
    return f"folder:{known}", unknown


def link(folder: Path, files: Sequence[Path]) -> None:
    """Links to files, their class in the name."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / f"{file.parent.name}-{file.name}"
        if not target.is_symlink():
            os.symlink(file.absolute(), target)


# one run ------------------------------------------------------------------------------------------------


def measured(task: Task, arguments: Namespace) -> Found:
    """What a run gives; that of an earlier start where there is one."""
    name = f"{task.name}-{task.shots or 'all'}-{arguments.views}"
    folder: Path = arguments.folder / name
    file = folder / "found.json"
    if file.is_file():
        return dict(json.loads(file.read_text()))
    found = run(task, name, folder, arguments)
    file.write_text(json.dumps(found) + "\n")
    console.print(f"{name}: accuracy {found['accuracy']:.4f}, {found['decided']}")
    return found


def run(task: Task, name: str, folder: Path, arguments: Namespace) -> Found:
    """Train, calibrate and test, then try what else could decide."""
    sources = linked(task, folder)
    init = {"name": arguments.backbone, "weights": arguments.weights, "views": arguments.views}
    model, datamodule, results, table = trained(
        sources,
        name,
        folder,
        init,
        left_out=task.shots is None,  # else the training by itself says it
        detectors=[each for each in DETECTORS if each != "fisher"],
        calibration="known_quantile",  # all scores by the same validation images, however few
    )
    recogniser = model.trained.eval()
    train, val = datamodule.tables.load_training()
    assert train.features is not None
    assert val.features is not None
    taken = references(datamodule.tables, recogniser, ALPHA)[1]
    assert taken is not None
    held_out = scores_of(recogniser, val.features)
    test = datamodule.tables.load_test()
    assert test.features is not None
    tested = {**table.scores, "direction": direction(recogniser, test.features)}
    kept = {f"held_out/{name}": values for name, values in held_out.items()}
    kept |= {f"tested/{name}": values for name, values in tested.items()}
    np.savez(folder / "scores.npz", taken=taken.numpy(), source=table.source, **kept)  # for other sums
    free = ~taken.numpy()
    scores = {
        each: judged(tested[each], known_quantile(held_out[each][free], ALPHA), table) for each in tested
    }
    scores |= dict(sums(held_out, tested, taken.numpy(), table))
    itself = by_itself(model, results, table)
    if task.shots is not None:  # folds choose the threshold
        model, _, results, again = trained(sources, f"{name}-itself", folder, init)
        itself = by_itself(model, results, again)
    count = int(table.known.sum())
    return {
        **itself,
        "training": len(train),
        "validation": len(val),
        "tested": count,
        "bounds": bounds(count, itself["calibrated_on"]),
        "scikit_learn": scikit_learn(recogniser, train, val, test, table),
        "scores": scores,
    }


def trained(
    sources: tuple[str, dict[str, str]],
    name: str,
    folder: Path,
    init: Mapping[str, Any],
    left_out: bool = True,
    **options: object,
) -> tuple[MCDropoutClassifier, OpenSetDataModule, Found, PredictionTable]:
    """What `osr run` does: the model, its images, its numbers and a row per tested image."""
    known, unknown = sources
    seed_everything(0, verbose=False)
    datamodule = OpenSetDataModule(known=known, unknown=dict(unknown))
    model = MCDropoutClassifier(
        network={"class_path": Backbone.__name__, "init_args": dict(init)},
        alpha=ALPHA,
        keep_examples=False,
        **options,
    )
    trainer = OpenSetTrainer(
        experiment=name,
        default_root_dir=str(folder),
        enable_progress_bar=False,
        callbacks=[
            Evaluator(figures=False, tsne_points=0, projector_points=0, bootstrap=1, left_out=left_out)
        ],
    )
    results = trainer.run(model, datamodule)
    return model, datamodule, results, PredictionTable.load(Path(str(trainer.log_dir)))


def by_itself(model: MCDropoutClassifier, results: Found, table: PredictionTable) -> Found:
    """What `osr run` reaches where only the images are named."""
    threshold, left_out = model.trained.threshold, results.get("left_out")
    return {
        "accuracy": results["closed_set"]["accuracy"],
        "decided": judged(table.scores[threshold.score], threshold.value, table),
        "method": threshold.record.method,
        "calibrated_on": threshold.record.count_known,
        "left_out": left_out and {name: left_out[name] for name in ("rejected", "auroc")},
        "seconds": results["timing"],
    }


def bounds(tested: int, calibrated_on: int) -> list[float]:
    """The share of known pictures that 97.5 of 100 tests reject at most.

    First as if the threshold were exact, then as it is, one of so many scores of calibration pictures
    (Vovk, Conditional Validity of Inductive Conformal Predictors, ACML 2012).
    """
    place = int(np.ceil((1 - ALPHA) * (calibrated_on + 1)))
    both = binom(tested, ALPHA), betabinom(tested, calibrated_on + 1 - place, place)
    return [float(one.ppf(0.975)) / tested for one in both]


def scores_of(recogniser: Any, features: torch.Tensor) -> Scores:  # noqa: ANN401
    """Every score of validation images, and the distance in fisher."""
    rows = recogniser.describe(features)
    found = {name.removeprefix("score/"): v.numpy() for name, v in rows.items() if name.startswith("score/")}
    return {**found, "direction": direction(recogniser, features)}


@torch.no_grad()
def direction(recogniser: Any, features: torch.Tensor) -> Floats:  # noqa: ANN401
    """Fisher's distance of features to the class that is predicted."""
    fisher = recogniser.detectors["fisher"]
    seen = {name: part.double() for name, part in recogniser.look(features).items()}
    found: Floats = fisher._statistics(seen, fisher.means, fisher.whitening)[1].numpy()
    return found


def judged(tested: Floats, threshold: float, table: PredictionTable) -> Found:
    """What a score tells apart, and what it rejects at a threshold."""
    ours = tested[table.known]
    limit = np.sort(ours)[share95(len(ours)) - 1]
    found: Found = {"false_alarms": float(np.mean(ours > threshold))}
    for place, name in enumerate(table.source_names):
        if not place:  # the known images
            continue
        theirs = tested[table.source == place]
        truth = np.r_[np.zeros(len(ours)), np.ones(len(theirs))]
        found[name] = {
            "auroc": float(roc_auc_score(truth, np.r_[ours, theirs])),
            "fpr95": float(np.mean(theirs <= limit)),
            "rejected": float(np.mean(theirs > threshold)),
        }
    return found


def sums(
    held_out: Scores, tested: Scores, taken: NDArray[np.bool_], table: PredictionTable
) -> Iterator[tuple[str, Found]]:
    """Fisher sums of two or three, one of two counted twice too; as fisher does, with its references."""

    def heights(values: Floats, name: str) -> Floats:
        reference = torch.from_numpy(held_out[name][taken]).sort().values[None]
        return surprise(torch.from_numpy(values)[None], reference, tail_slopes(reference))[0].numpy()

    inside = {name: heights(held_out[name], name) for name in SUMMED}
    outside = {name: heights(tested[name], name) for name in SUMMED}
    recipes = [dict.fromkeys(names, 1) for count in (2, 3) for names in combinations(SUMMED, count)]
    recipes += [{a: 2, b: 1} for a in SUMMED for b in SUMMED if a != b]
    for recipe in recipes:
        name = " + ".join(f"{weight} {one}" if weight > 1 else one for one, weight in recipe.items())
        chosen, scores = (
            np.asarray(sum(w * part[one] for one, w in recipe.items())) for part in (inside, outside)
        )
        yield name, judged(scores, known_quantile(chosen[~taken], ALPHA), table)


def scikit_learn(recogniser: Any, train: Any, val: Any, test: Any, table: PredictionTable) -> float:  # noqa: ANN401
    """Accuracy of scikit-learn's logistic regression on standardised features, its C by validation images."""
    width = recogniser.sampler.last_layer.in_features  # what stands behind is the style
    middle, spread = train.features[:, :width].mean(0), train.features[:, :width].std(0) + 1e-6
    parts = (train, val, test)
    x, held_out, tested = (((part.features[:, :width] - middle) / spread).numpy() for part in parts)
    best: tuple[float, LogisticRegression] | None = None
    for inverse in INVERSE_PENALTIES:
        fitted = LogisticRegression(C=inverse, max_iter=300).fit(x, train.labels.numpy())
        chances = fitted.predict_log_proba(held_out)[np.arange(len(val.labels)), val.labels.numpy()]
        if best is None or chances.mean() > best[0]:
            best = float(chances.mean()), fitted
    assert best is not None
    return float(np.mean(best[1].predict(tested[table.known]) == table.label[table.known]))


# the section --------------------------------------------------------------------------------------------


def write(runs: Mapping[str, Sequence[Found]], arguments: Namespace) -> list[str]:
    """The section's lines."""
    lines = [
        f"Written by `python benchmarks/photos.py --data-root DATA`: {arguments.backbone}, trained on",
        f"ImageNet and frozen, and the head that `osr run` trains on its features; views: {arguments.views}.",
        "A fifth of each known class is tested; the rest train and validate, a fifth of them,",
        f"or {FEW} pictures a class do, of which {FEW_VALIDATE} validate. *Near* are all pictures of the",
        "other classes, *far* CIFAR-10's photographs where clothing is known, and clothing where CIFAR-10",
        "is. All ten classes of CIFAR-10 are tested with a tenth of notMNIST and of Fashion-MNIST. *Made up*",
        "are pictures of one colour, gradients, and fine and coarse noise; that an eighth of the side gives",
        "the style was settled with such pictures in view. No unknown image is seen before the test. In",
        "percent, mean ± sample standard deviation over draws of known classes.",
        "",
        f"### Decided as `osr run` does by itself: `fisher`, alpha {ALPHA:.0%}",
        "",
    ]
    header = ("", "training and validation pictures", "accuracy", "scikit-learn", "AUROC / FPR95 / rejected")
    header += ("threshold by", "known rejected", "runs within the bounds")
    rows = []
    for group, found in runs.items():
        unknown = [
            f"{kind}: " + " / ".join(decided(found, kind, key) for key in ("auroc", "fpr95", "rejected"))
            for kind in kinds(found)
        ]
        within = [sum(one["decided"]["false_alarms"] <= one["bounds"][k] for one in found) for k in (0, 1)]
        row = [
            group,
            str(round(mean(one["training"] + one["validation"] for one in found))),
            text(one["accuracy"] for one in found),
            text(one["scikit_learn"] for one in found),
            ", ".join(unknown),
            f"`{found[0]['method']}`",
            text(one["decided"]["false_alarms"] for one in found),
            f"{within[0]}, {within[1]} of {len(found)}",
        ]
        rows.append(row)
    lines += [
        *table_lines(header, rows),
        "",
        "*scikit-learn* is the accuracy of its `LogisticRegression` on standardised features of the same",
        "pictures, its `C` chosen by the same validation images. *Known rejected* is to be 5%; the *bounds*",
        "are what 97.5 of 100 tests of so many pictures stay within: if each were rejected with probability",
        "5%, and with a threshold that is one of so many calibration scores (beta-binomial).",
        "",
        "### A class that was never met: the estimate, and what the near pictures gave",
        "",
        "Each known class left out once, as in `left_out` of `results.json`, mean over classes; beside it",
        "all near pictures. *Off by*: mean and largest distance of the two over draws, in points.",
        "",
        *left_out_table(runs),
        "",
        "### AUROC near / far / made up of every score",
        "",
        "Of recognisers whose validation images alone choose the thresholds and the weight decay.",
        "",
        *score_table(runs, [one for one in first(runs)["scores"] if "+" not in one]),
        "",
        f"### AUROC near / far / made up of the {SHOWN_SUMS} best Fisher sums",
        "",
        "Of all two and three of " + ", ".join(f"`{one}`" for one in SUMMED),
        "and of two with one counted twice, by the mean of the near AUROC. *direction* is the distance that",
        "`fisher` takes, of features at unit length and style; `fisher` is 2 generalized_entropy +",
        "direction.",
        "",
    ]
    added = [one for one in first(runs)["scores"] if "+" in one]
    best = sorted(added, key=lambda one: -overall(runs, one))[:SHOWN_SUMS]
    return [*lines, *score_table(runs, ["fisher", *best])]


def left_out_table(runs: Mapping[str, Sequence[Found]]) -> list[str]:
    """A row per group with near pictures."""
    rows = []
    for group, found in runs.items():
        chosen = [one for one in found if one["left_out"] and "near" in one["decided"]]
        if not chosen:
            continue
        cells = []
        for key in ("rejected", "auroc"):
            pairs = [(one["left_out"][key], one["decided"]["near"][key]) for one in chosen]
            off = [abs(estimate - truth) for estimate, truth in pairs]
            cells += [", ".join(text(values) for values in zip(*pairs, strict=True))]
            cells += [f"{100 * mean(off):.1f} and {100 * max(off):.1f}"]
        rows.append([group, *cells])
    header = ("", "rejected: estimate, truth", "off by", "AUROC: estimate, truth", "off by")
    return table_lines(header, rows)


def score_table(runs: Mapping[str, Sequence[Found]], scores: Sequence[str]) -> list[str]:
    """A row per score, a column per group, and the mean of the near AUROC over groups."""
    rows = []
    for score in scores:
        cells = (" / ".join(over(one, score, kind, "auroc") for kind in kinds(one)) for one in runs.values())
        rows.append([f"`{score}`", *cells, f"{100 * overall(runs, score):.1f}"])
    return table_lines(("", *runs, "mean near"), rows)


def kinds(found: Sequence[Found]) -> list[str]:
    """The unknown sets of a group."""
    return [name for name, value in found[0]["scores"]["fisher"].items() if isinstance(value, dict)]


def first(runs: Mapping[str, Sequence[Found]]) -> Found:
    """Some run."""
    return next(iter(runs.values()))[0]


def overall(runs: Mapping[str, Sequence[Found]], score: str) -> float:
    """Mean over groups of the near AUROC."""
    chosen = [found for found in runs.values() if "near" in kinds(found)]
    return mean(mean(one["scores"][score]["near"]["auroc"] for one in found) for found in chosen)


def over(found: Sequence[Found], score: str, kind: str, key: str) -> str:
    """Mean and deviation over draws of what a score reaches."""
    return text(one["scores"][score][kind][key] for one in found)


def decided(found: Sequence[Found], kind: str, key: str) -> str:
    """Mean and deviation over draws of what `osr run` reaches by itself."""
    return text(one["decided"][kind][key] for one in found)


def text(values: Iterable[float]) -> str:
    """Mean and deviation in percent."""
    found = [100 * value for value in values]
    return f"{mean(found):.1f}" + (f" ± {stdev(found):.1f}" if len(found) > 1 else "")


def headline(found: Sequence[Found]) -> list[str]:
    """What is printed of a group."""
    shown = (" / ".join(decided(found, kind, key) for kind in kinds(found)) for key in ("auroc", "fpr95"))
    alarms = text(one["decided"]["false_alarms"] for one in found)
    return [text(one["accuracy"] for one in found), *shown, alarms]


def targets(runs: Mapping[str, Sequence[Found]]) -> list[Target]:
    """What was to be reached."""
    wanted = []
    for group, bounds in TARGETS.items():
        if group not in runs:
            continue
        found = runs[group]
        values = {"accuracy": mean(one["accuracy"] for one in found)}
        for kind, key in product(kinds(found), ("auroc", "fpr95")):
            values[f"{kind} {key}"] = mean(one["decided"][kind][key] for one in found)
        for name, bound in bounds.items():
            wanted.append(Target(f"{group}: {name}", values[name], bound, at_least="fpr95" not in name))
    return wanted


if __name__ == "__main__":
    main()
