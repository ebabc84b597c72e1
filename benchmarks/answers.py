"""Draws docs/answers.png: digits and photographs, and what was said of them.

Trains `configs/quickstart.yaml` on its embedded digits, and `osr run --data.known folder:DATA/clothing` with
six classes and 200 pictures of each at most. The first test images of a shuffle are shown, whatever was said
of them; what is wrong is written in red.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from common import finish, new_parser, quiet_lightning, start
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from osr_lightning import MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer, Prediction, load
from osr_lightning.training.callbacks.evaluator import Evaluator

KNOWN = ("dress", "hat", "longsleeve", "pants", "shoes", "shorts")
PICTURES = 200  # of each class at most
SHOWN = 4  # known and unknown images in each row
SIDE = 0.95  # inches of a picture
Picture = NDArray[np.uint8]


def trained(folder: Path, name: str, data: OpenSetDataModule, **options: Any) -> str:  # noqa: ANN401
    """The checkpoint of a run."""
    trainer = OpenSetTrainer(
        name,
        default_root_dir=str(folder),
        max_epochs=12 if name == "digits" else None,
        enable_progress_bar=False,
        callbacks=[Evaluator(figures=False, projector_points=0, bootstrap=10, left_out=False)],
    )
    return str(trainer.run(MCDropoutClassifier(**options), data)["checkpoint"])


def digits(folder: Path, rng: np.random.Generator) -> tuple[str, list[Picture], list[str]]:
    data = OpenSetDataModule("mnist_sample", unknown={"photo_patches": "photo_patches"}, val_fraction=0.125)
    checkpoint = trained(folder, "digits", data, network="MCDropoutCNN", schedule="one_cycle")
    test = data.tables.load_test()
    labels = test.labels.numpy()
    unknown = labels == 10
    rows = [
        *rng.permutation(np.flatnonzero(~unknown))[:SHOWN],
        *rng.permutation(np.flatnonzero(unknown))[:SHOWN],
    ]
    pictures = [test.images[int(row)][0].numpy() for row in rows]
    return checkpoint, pictures, [str(labels[row]) if labels[row] < 10 else "unknown" for row in rows]


def photographs(folder: Path, root: Path, rng: np.random.Generator) -> tuple[str, list[Picture], list[str]]:
    files = {name: sorted((root / "clothing" / name).glob("*.jpg")) for name in KNOWN}
    shown: list[tuple[Path, str]] = []
    for name in KNOWN:
        drawn = [files[name][row] for row in rng.permutation(len(files[name]))[: PICTURES + 1]]
        place = folder / "known" / name
        place.mkdir(parents=True)
        for file in drawn[1:]:
            (place / file.name).symlink_to(file.resolve())
        shown.append((drawn[0], name))
    data = OpenSetDataModule(f"folder:{folder / 'known'}", unknown={})
    checkpoint = trained(folder, "photographs", data)
    shown = [shown[row] for row in sorted(rng.permutation(len(shown))[:SHOWN])]
    other = sorted((root / "clothing" / "outwear").glob("*.jpg"))
    unknown = [
        np.asarray(Image.open(other[int(row)]).convert("RGB")) for row in rng.permutation(len(other))[:1]
    ]
    animals = sorted((root / "cifar10" / "test" / "frog").glob("*.jpg"))
    unknown += [
        np.asarray(Image.open(animals[int(row)]).convert("RGB")) for row in rng.permutation(len(animals))[:1]
    ]
    unknown += load_sample_images().images
    known = [np.asarray(Image.open(file).convert("RGB")) for file, _ in shown]
    return checkpoint, [*known, *unknown], [*(name for _, name in shown), *["unknown"] * len(unknown)]


def square(picture: Picture) -> Picture:
    """The middle of a picture, 96 pixels a side."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    cut = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(cut.resize((96, 96), Image.Resampling.BICUBIC))


def draw(rows: Sequence[tuple[list[Picture], list[Prediction], list[str]]], path: Path) -> None:
    columns = 2 * SHOWN
    size = (SIDE * columns + 0.25, 1.32 * SIDE * len(rows))
    figure, axes = plt.subplots(len(rows), columns, figsize=size, facecolor="white")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.99, bottom=0.14, wspace=0.08, hspace=0.38)
    for line, (pictures, answers, truths) in zip(axes, rows, strict=True):
        for axis, picture, answer, truth in zip(line, pictures, answers, truths, strict=True):
            axis.imshow(square(picture), cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            colour = "#c62828" if answer.label != truth else "#555555" if answer.unknown else "#1b5e20"
            weight = "bold" if answer.unknown else "normal"
            axis.text(0.5, -0.06, answer.label, transform=axis.transAxes, ha="center", va="top", fontsize=9,
                      color=colour, fontweight=weight)  # fmt: skip
    figure.savefig(path, dpi=100, pil_kwargs={"optimize": True})
    plt.close(figure)


def main() -> None:
    parser = new_parser(__doc__, "answers", repeats=None)
    parser.add_argument("--seed", type=int, default=1, help="of the shuffles")
    picture = Path(__file__).parents[1] / "docs" / "answers.png"
    parser.add_argument("--output", type=Path, default=picture)
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    torch.manual_seed(arguments.seed)
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        made = {
            "digits": digits(folder, np.random.default_rng(arguments.seed)),
            "photographs": photographs(folder, arguments.data_root, np.random.default_rng(arguments.seed)),
        }
        for name, (checkpoint, pictures, truths) in made.items():
            answers = load(checkpoint).predict(pictures)
            rows.append((pictures, answers, truths))
            found[name] = [{"truth": t, "answer": a.label} for t, a in zip(truths, answers, strict=True)]
    draw(rows, arguments.output)
    finish(arguments, machine, {"answers": found}, [])


if __name__ == "__main__":
    main()
