"""How well `osr review` groups what is called unknown, beside k-means that is told the number of groups.

Every second class of clothing photographs is known, from the first on; the others are near unknown ones, and
every second class of CIFAR-10's photographs, enlarged, from its second on, are far ones. What `osr run`
trains calls images unknown; of each unknown class up to 100 of these are mixed with all known test images
that are called unknown, the false alarms. The adjusted Rand index compares the groups with the classes; false
alarms are one class, images in no group one group. How images are grouped was chosen on the known classes and
on the rest of CIFAR-10; none of the unknown classes here had a part in it. Features are kept in
OSR_CACHE_DIR. Writes a section of docs/review.md.
"""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np
import torch
from common import Target, finish, new_parser, print_table, quiet_lightning, start, table_lines, write_section
from lightning import seed_everything
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from osr_lightning import MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.deploy.review.groups import NONE, group
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.models.backbones import DEFAULT_NAME, Backbone
from osr_lightning.models.sampling import PENULTIMATE
from osr_lightning.training.callbacks.evaluator import Evaluator

PAGE = Path(__file__).parents[1] / "docs" / "review.md"
SECTION = "How well it groups"
CLASSES = (2, 3, 4)  # unknown ones that come together
PICTURES = 100  # of each, at most
DRAWS = 10  # of classes, at most
BOUNDS = {"near": 0.5, "far": 0.8}
HEADER = ("", "draws", "images", "groups", "osr review", "k-means, classes", "k-means, classes + 1")


class Unknown(NamedTuple):
    """What was called unknown.

    Attributes:
        features: ``(N, D)`` of unit length.
        truth: ``(N,)`` names of classes; ``known`` for false alarms.
    """

    features: NDArray[np.float32]
    truth: NDArray[np.str_]


def main() -> None:
    parser = new_parser(__doc__, "review", repeats=None)
    parser.add_argument("--backbone", default=DEFAULT_NAME, help="name of the backbone")
    parser.add_argument("--weights", default="DEFAULT", help="its weights")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of classes, at most")
    parser.add_argument("--page", type=Path, default=PAGE, help="gets the section")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    clothing = sorted(one.name for one in (arguments.data_root / "clothing").iterdir() if one.is_dir())
    cifar = sorted(one.name for one in (arguments.data_root / "cifar10" / "test").iterdir() if one.is_dir())
    cifar = cifar[1::2]
    with tempfile.TemporaryDirectory() as folder:
        found = called_unknown(arguments, clothing[::2], clothing[1::2], cifar, Path(folder))
    results = {
        f"{kind}, {count} classes": [
            judged(found, classes) for classes in drawn(names, count, arguments.draws)
        ]
        for kind, names in (("near", clothing[1::2]), ("far", [f"cifar10 {name}" for name in cifar]))
        for count in CLASSES
    }
    rows = [row(name, each) for name, each in results.items()]
    print_table(SECTION, HEADER, rows)
    write_section(arguments.page, SECTION, section(rows, clothing[::2], clothing[1::2], cifar))
    targets = [
        Target(name, mean(one["review"] for one in each), BOUNDS[name.partition(",")[0]])
        for name, each in results.items()
    ]
    finish(arguments, machine, {"runs": results}, targets)


def called_unknown(
    arguments: Namespace, known: list[str], near: list[str], far: list[str], folder: Path
) -> Unknown:
    """Train on the known classes; what is called unknown of all others and of the known test images."""
    root: Path = arguments.data_root.absolute()
    unknown = {name: f"folder:{root / 'clothing' / name}" for name in near}
    for name in far:
        own = folder / name
        own.mkdir()
        for file in sorted((root / "cifar10" / "test" / name).iterdir())[:PICTURES]:
            os.symlink(file, own / file.name)
        unknown[f"cifar10 {name}"] = f"folder:{own}"
    seed_everything(0, verbose=False)
    datamodule = OpenSetDataModule(known=f"folder:{root / 'clothing'}", known_classes=known, unknown=unknown)
    network = {
        "class_path": Backbone.__name__,
        "init_args": {"name": arguments.backbone, "weights": arguments.weights, "views": 2},
    }
    trainer = OpenSetTrainer(
        default_root_dir=str(folder),
        enable_progress_bar=False,
        callbacks=[Evaluator(figures=False, tsne_points=0, projector_points=0, bootstrap=1, left_out=False)],
    )
    model = MCDropoutClassifier(network=network)
    trainer.run(model, datamodule)
    table = PredictionTable.load(Path(str(trainer.log_dir)))
    recogniser, test = model.trained.eval(), datamodule.tables.load_test()
    assert test.features is not None
    with torch.inference_mode():
        seen = recogniser.sampler(recogniser.standardise(test.features), (PENULTIMATE,))
        features = torch.nn.functional.normalize(seen.features[PENULTIMATE]).numpy()
        scores = recogniser.describe(test.features)[f"score/{recogniser.threshold.score}"].numpy()
    rows = scores > recogniser.threshold.value
    names = np.array(["known", *table.source_names[1:]])
    return Unknown(features[rows], names[table.source[rows]])


def drawn(names: list[str], count: int, draws: int) -> Iterator[tuple[str, ...]]:
    """Some classes at a time: all that there are, or so many of them."""
    every = list(combinations(names, count))
    rows = np.random.RandomState(0).permutation(len(every))[:draws]
    return (every[row] for row in rows)


def judged(found: Unknown, classes: tuple[str, ...]) -> dict[str, Any]:
    """The adjusted Rand indices of one mixture."""
    rng = np.random.RandomState(0)
    rows = [rng.permutation(np.flatnonzero(found.truth == name))[:PICTURES] for name in classes]
    mixed = np.concatenate([*rows, np.flatnonzero(found.truth == "known")])
    features, truth = found.features[mixed], found.truth[mixed]
    groups = group(features)
    told = {
        f"k-means {more}": KMeans(len(classes) + more, n_init=10, random_state=0).fit_predict(features)
        for more in (0, 1)
    }
    return {
        "classes": classes,
        "images": len(truth),
        "false_alarms": int((truth == "known").sum()),
        "groups": len(groups.coherence),
        "alone": int((groups.labels == NONE).sum()),
        "review": float(adjusted_rand_score(truth, groups.labels)),
        **{name: float(adjusted_rand_score(truth, labels)) for name, labels in told.items()},
    }


def row(name: str, found: list[dict[str, Any]]) -> tuple[str, ...]:
    """A row of the table."""
    numbers = (f"{mean(one[key] for one in found):.0f}" for key in ("images", "groups"))
    indices = (spread([one[key] for one in found]) for key in ("review", "k-means 0", "k-means 1"))
    return (name, str(len(found)), *numbers, *indices)


def spread(values: list[float]) -> str:
    """The mean, and the sample standard deviation of several."""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def section(rows: list[tuple[str, ...]], known: list[str], near: list[str], far: list[str]) -> list[str]:
    """The section's lines."""
    return [
        "Written by `python benchmarks/review.py --data-root DATA`: the adjusted Rand index, 1 for the true",
        f"classes and 0 for chance. Known are {', '.join(known)}; near unknown classes are",
        f"{', '.join(near)}, far ones CIFAR-10's {', '.join(far)}, enlarged.",
        f"Of each unknown class come up to {PICTURES} images that were called unknown, and with them all",
        "false alarms of the known test images, which count as one class; mean ± sample standard deviation",
        "over draws of classes. k-means is told how many groups there are, without and with one for the",
        "false alarms, and sees the same features.",
        "",
        *table_lines(HEADER, rows),
        "",
        "How images are grouped was chosen on other classes: the known ones here, held out of trainings of",
        "their own, and CIFAR-10's airplane, bird, deer, frog and ship, two to four at a time. There",
        "communities of neighbours did better than Ward's hierarchy cut by the silhouette, and than HDBSCAN,",
        "and k-means of as many groups better than the communities (0.57 against 0.54, mean over kinds).",
        "This table was seen with three earlier methods before; Ward's hierarchy reached 0.51, 0.46 and 0.47",
        "in its near rows, the communities 0.42, 0.48 and 0.54.",
    ]


if __name__ == "__main__":
    main()
