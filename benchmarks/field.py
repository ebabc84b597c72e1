"""An hour in the field: unknown photographs are reviewed, named and learned, and come again the next day.

Four classes of clothing photographs are known. On the first day 400 pictures come, 100 of which are of two
classes that nobody told of. What is called unknown is grouped as `osr review` does, and a person is played
who knows the right names: a group of which at least half is one new class gets its name, what does not belong
is moved out image by image, and the new classes' images of other groups are moved in. `osr extend` learns
from that labels.csv, and other 400 pictures come on the second day. Writes a section of docs/field.md.
"""

from __future__ import annotations

import os
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, new_parser, print_table, run_osr, start, table_lines, write_section

from osr_lightning import load
from osr_lightning.deploy.review.groups import group
from osr_lightning.deploy.review.images import choose, from_table, look
from osr_lightning.models.backbones import DEFAULT_NAME
from osr_lightning.recogniser.prediction import Prediction
from osr_lightning.recogniser.rows import table_sink

PAGE = Path(__file__).parents[1] / "docs" / "field.md"
SECTION = "What it gave"
KNOWN, NEW = ("dress", "longsleeve", "pants", "shoes"), ("hat", "skirt")
TRAINED, A_DAY, NEW_A_DAY = 120, 75, 50  # pictures of a class
HEADER = ("400 pictures of the second day", "before", "after")


def main() -> None:
    parser = new_parser(__doc__, "field", repeats=None)
    parser.add_argument("--backbone", default=DEFAULT_NAME, help="name of the backbone")
    parser.add_argument("--weights", default="DEFAULT", help="its weights")
    parser.add_argument(
        "--classes", nargs=6, default=(*KNOWN, *NEW), help="four known ones, and two new ones"
    )
    parser.add_argument(
        "--pictures", nargs=3, type=int, default=(TRAINED, A_DAY, NEW_A_DAY), help="of a class"
    )
    parser.add_argument("--page", type=Path, default=PAGE, help="gets the section")
    arguments = parser.parse_args()
    machine = start(arguments)
    with tempfile.TemporaryDirectory() as name:
        found = hour(arguments, Path(name))
    rows = [
        ("known: right", *map(percent, found["known"])),
        ("new classes: right", *map(percent, found["new"])),
        ("all: right", *map(percent, found["all"])),
    ]
    print_table(SECTION, HEADER, rows)
    write_section(arguments.page, SECTION, section(found, rows))
    finish(arguments, machine, {"hour": found}, [])


def hour(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """From the training to the second day's answers."""
    known, new = arguments.classes[:4], arguments.classes[4:]
    deal(arguments, folder)
    words = [
        f"--data.known=folder:{folder}/MINE",
        f"--trainer.default_root_dir={folder}",
        "--seed_everything=1",
    ]
    words += ["--model.network=Backbone", f"--model.network.name={arguments.backbone}"]
    words += ["--model.network.views=2"]  # as osr run has them by itself
    words += [f"--model.network.weights={arguments.weights}", "--evaluation.figures=false"]
    words += ["--evaluation.projector_points=0", "--evaluation.bootstrap=1", "--evaluation.left_out=false"]
    run_osr(["run", *words])
    checkpoint = next(folder.glob("lightning_logs/default/*/checkpoints/best.ckpt"))
    answers = folder / "answers.csv"
    run_osr(["predict", f"--ckpt_path={checkpoint}", str(folder / "DAY1"), f"--output={answers}"])
    labels, effort = reviewed(checkpoint, answers, folder, new)
    second = {name: str(folder / "DAY2" / name) for name in (*known, *new)}
    before = said(checkpoint, second)
    begin = time.perf_counter()
    target = folder / "extended.ckpt"
    run_osr(["extend", str(labels), f"--ckpt_path={checkpoint}", f"--output={target}"])
    seconds = time.perf_counter() - begin
    after = said(target, second)
    parts = {"known": known, "new": new, "all": (*known, *new)}
    shares = {part: [share(answers, names) for answers in (before, after)] for part, names in parts.items()}
    return {**shares, **effort, "extend_s": seconds}


def deal(arguments: Namespace, folder: Path) -> None:
    """Links to different pictures: to be trained on, of the first day, and of the second."""
    trained, a_day, new_a_day = arguments.pictures
    for place, name in enumerate(arguments.classes):
        files = sorted((arguments.data_root.absolute() / "clothing" / name).iterdir())
        np.random.RandomState(place).shuffle(files)
        days = dict.fromkeys(("DAY1", "DAY2"), a_day if place < len(KNOWN) else new_a_day)
        sizes = {"MINE": trained, **days} if place < len(KNOWN) else days
        for part, count in sizes.items():
            (folder / part / name).mkdir(parents=True)
            for file in files[:count]:
                os.symlink(file, folder / part / name / file.name)
            files = files[count:]


def reviewed(
    checkpoint: Path, answers: Path, folder: Path, new: Sequence[str]
) -> tuple[Path, dict[str, int]]:
    """labels.csv of a person who knows the right names, and what that took."""
    recogniser = load(checkpoint)
    chosen = choose(from_table(str(answers), recogniser), 5000)
    seen = [one for one in look(recogniser, chosen.images) if one.image.known < 0]
    groups = group([one.features for one in seen])
    truth = [one.image.path.parent.name for one in seen]
    named = moved = 0
    for number in range(len(groups.coherence)):
        own = [truth[row] for row in np.flatnonzero(groups.labels == number)]
        name, count = Counter(own).most_common(1)[0]
        is_named = name in new and 2 * count >= len(own)
        named += is_named
        moved += sum((one != name) if is_named else (one in new) for one in own)
    moved += sum(truth[row] in new for row in np.flatnonzero(groups.labels < 0))
    labels = folder / "labels.csv"
    with labels.open("w", newline="", encoding="utf-8") as file:
        table_sink(file, ["file", "label"])(
            (str(one.image.path), name) for one, name in zip(seen, truth, strict=True) if name in new
        )
    unknown = sum(name in new for name in truth)
    effort = {"unknown": len(seen), "of_new_classes": unknown, "groups": len(groups.coherence)}
    return labels, effort | {"named": named, "moved": moved}


def said(checkpoint: Path, folders: dict[str, str]) -> dict[str, list[Prediction]]:
    """What a checkpoint says of each class's pictures."""
    recogniser = load(checkpoint)
    return {name: recogniser.predict(folder) for name, folder in folders.items()}


def share(answers: dict[str, list[Prediction]], classes: Sequence[str]) -> float:
    """The share of some classes' pictures that get their own name."""
    return float(np.mean([one.label == name for name in classes for one in answers[name]]))


def percent(value: float) -> str:
    return f"{value:.1%}"


def section(found: dict[str, Any], rows: list[tuple[str, ...]]) -> list[str]:
    """The section's lines."""
    return [
        "Written by `python benchmarks/field.py --data-root DATA`. On the first day",
        f"{found['unknown']} pictures were called unknown, {found['of_new_classes']} of them of the new",
        f"classes, in {found['groups']} groups. A person who knows the names typed {found['named']}",
        f"and moved {found['moved']} images. `osr extend` took {found['extend_s']:.0f} s, start-up included.",
        "",
        *table_lines(HEADER, rows),
    ]


if __name__ == "__main__":
    main()
