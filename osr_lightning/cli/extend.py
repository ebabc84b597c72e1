"""``osr extend``: classes added to a checkpoint, or taken out, in seconds and without the old images."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from osr_lightning.atomic_write import as_text, check_place, write_text
from osr_lightning.cli.arguments import CommandParser, add_checkpoint, add_trust, parse
from osr_lightning.cli.checkpoint_path import existing
from osr_lightning.errors import UserError, one_line

_LOST = 0.005  # of the old classes' accuracy: more is said aloud


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = CommandParser(
        "osr extend",
        usage="osr extend --ckpt_path CKPT [LABELS.csv] [--add NAME=FOLDER ...] [--remove NAME ...] "
        "[--alpha SHARE] [options]",
        description="Add classes and images to a checkpoint of a frozen backbone, or take classes out, "
        "without the images that it was made of: their features are in it. The last layer and the detectors "
        "are fitted again, scores out of fold choose the threshold, and what changes for the old classes is "
        "told. Another checkpoint is written.",
        epilog="LABELS.csv has the columns file and label, as osr review gives it or written by hand; images "
        "labelled unknown, ignore or nothing are passed over. A class that is known gets more images.",
    )
    parser.add_argument("labels", nargs="?", metavar="LABELS.csv", help="which image is what: file,label")
    add_checkpoint(parser, "what to extend", required=True)
    parser.add_argument(
        "--add",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="images of one class; may be repeated",
    )
    parser.add_argument(
        "--remove", action="append", default=[], metavar="NAME", help="a class to take out; may be repeated"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        help="largest share of known images to reject, and may be all that changes; the checkpoint's if not "
        "given",
    )
    parser.add_argument(
        "--test",
        metavar="FOLDER",
        help="a folder of further images per class, asked before and after; other folders are unknown",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="of the new checkpoint; NAME.extended.ckpt beside CKPT if not given"
    )
    add_trust(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: for a mistake in the options, the files or the labels.
    """
    options = parse(build_parser(), arguments)
    path = existing(options.ckpt_path)
    if options.alpha is not None and not 0 < options.alpha < 1:
        raise UserError(f"--alpha must lie between 0 and 1, got {options.alpha:g}")
    target = _target(path, options.output)
    from osr_lightning.recogniser import checkpoint as checkpoints
    from osr_lightning.recogniser.labels import read_labels
    from osr_lightning.training.extend import extend, judge

    old = checkpoints.load(path, trust=options.trust_checkpoint)
    added = {name: list(files) for name, files in _folders(options.add).items()}
    ignored = 0
    if options.labels is not None:
        found = read_labels(options.labels, old.threshold.value)
        ignored = found.ignored
        for name, files in found.files.items():
            added.setdefault(name, []).extend(files)
        if not added and not options.remove:
            raise UserError(f"{options.labels} gives no image a class: {ignored:,} rows are to be ignored")
    tested = None if options.test is None else _classes_of(options.test, "--test")
    done = extend(path, added, options.remove, options.alpha, old=old)
    report = done.report | {"ignored": ignored}
    if tested is not None:
        report["test"] = judge(old, done.recogniser, tested)
    checkpoints.write(done.checkpoint, target, follow=options.output is not None)
    write_text(_report(target), json.dumps(report, indent=2) + "\n")
    _tell(report, target)
    return 0


def _target(path: Path, output: str | None) -> Path:
    """Where the new checkpoint goes, and its report beside: nowhere that something is, unless it is named."""
    if output is None:
        stem = path.name.removesuffix(".ckpt")
        names = (f"{stem}.extended{'' if number == 1 else number}.ckpt" for number in count(1))
        places = map(path.with_name, names)
        return next(place for place in places if not place.exists() and not _report(place).exists())
    target = check_place("--output", output, [".ckpt"])
    if target.exists() and target.samefile(path):
        raise UserError(f"--output {output} is the checkpoint that is extended: name another file")
    if _report(target).exists() and not target.exists():  # else it is that of an earlier time
        raise UserError(
            f"--output {output}: its report would be written over {as_text(_report(target))}; name another"
        )
    return target


def _report(target: Path) -> Path:
    """Where the numbers of a checkpoint go that is written there."""
    return target.with_suffix(".json")


def _folders(given: Iterable[str]) -> dict[str, list[Path]]:
    from osr_lightning.data_spec import composed

    found: dict[str, list[Path]] = {}
    for word in given:
        name, equals, folder = word.partition("=")
        (name,) = composed([name.strip()])
        if not name or not equals or not folder:
            raise UserError(f"--add {word}: give a class and the folder of its images, as --add cat=FOLDER")
        if name in found:
            raise UserError(f"--add names the class {name!r} twice; put its images into one folder")
        found[name] = _images_in(Path(folder).expanduser(), "--add")
    return found


def _images_in(folder: Path, option: str) -> list[Path]:
    from osr_lightning.images.find import find

    if not folder.is_dir():
        raise UserError(f"{option} {folder}: there is no such folder")
    found = sorted(one.path for one in find(str(folder)) if one.image)
    if not found:
        raise UserError(f"{option} {folder}: there are no images in it")
    return found


def _classes_of(folder: str, option: str) -> dict[str, list[Path]]:
    from osr_lightning.data_spec import composed

    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{option} {folder}: there is no such folder")
    below = sorted(one for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not below:
        raise UserError(f"{option} {folder}: there is no folder of a class in it")
    return {composed([one.name])[0]: _images_in(one, option) for one in below}


def _tell(report: Mapping[str, Any], target: Path) -> None:
    from rich.console import Console

    from osr_lightning.evaluation.console import new_table
    from osr_lightning.evaluation.report.render import percent

    console = Console(markup=False)
    old = report["old"]
    table = new_table(console, "not fitted to the image", "images", "before", "after")
    if old["count"]:
        kept = f"{old['count']:,}"
        table.add_row("old classes: right", kept, *map(percent, old["accuracy"]))
        table.add_row("old classes: right before rejection", kept, *map(percent, old["closed_set"]))
        table.add_row("old classes: rejected", kept, *map(percent, old["rejected"]))
    for name, found in report["new_classes"].items():
        what = "new class" if name in report["added"] else "new images of"
        table.add_row(
            one_line(f"{what} {name}: right"), f"{found['count']:,}", "", percent(found["accuracy"])
        )
    if (test := report.get("test")) is not None:
        for part in ("known", "unknown", "total"):
            shares = (percent(test[when][part]) for when in ("before", "after"))
            counts = ", ".join(f"{count:,}" for count in dict.fromkeys(test["images"][part]))
            table.add_row(f"test, {part}: right", counts, *shares)
    console.print(table)
    passed = [
        f"{number:,} {why}"
        for number, why in (
            (report["already_known"], "of the images were known already"),
            (report["ignored"], "rows were to be ignored"),
        )
        if number
    ]
    if passed:
        console.print("; ".join(passed))
    if report["called_unknown_before"] is not None:
        console.print(
            f"of the new images {percent(report['called_unknown_before'])} were called unknown before"
        )
    console.print(
        f"of those {old['count']:,} old images {percent(old['decisions_changed'])} are decided otherwise"
    )
    lost = old["accuracy"][0] - old["accuracy"][1] if old["count"] else 0.0
    taught = report["added"] or report["grown"] or report["removed"]
    if taught and lost > _LOST:  # else the new alpha asks for it
        console.print(
            f"warning: the old classes lose {100 * lost:.1f} points; more images of what they are "
            "mistaken for, or osr explain, may tell why",
            soft_wrap=True,
        )
    before, after = report["threshold"]
    console.print(f"threshold {before:.6g} -> {after:.6g}", soft_wrap=True)
    console.print(as_text(target), soft_wrap=True)
