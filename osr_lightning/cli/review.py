"""``osr review``: a page on which a person names what was called unknown."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from osr_lightning.atomic_write import check_place, write_text
from osr_lightning.cli.arguments import CommandParser, add_checkpoint, add_machine, add_trust, parse
from osr_lightning.cli.checkpoint_path import existing, telling_calibrated
from osr_lightning.cli.predict import progress
from osr_lightning.deploy.load import is_exported
from osr_lightning.errors import UserError, check_range, one_line
from osr_lightning.recogniser.rows import FORMATS

if TYPE_CHECKING:
    from osr_lightning.deploy.predict import Counts
    from osr_lightning.deploy.review.groups import Groups
    from osr_lightning.deploy.review.images import Answered, Chosen, Seen
    from osr_lightning.recogniser.recogniser import Recogniser


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = CommandParser(
        "osr review",
        description="Group the images that were called unknown by how they look, and write one page on which "
        "a person names the groups, sorts images and downloads labels.csv, which osr extend takes.",
        epilog="The page needs no server and loads nothing. docs/review.md says more.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="CSV of osr predict; and image files, folders and globs, which are predicted first",
    )
    add_checkpoint(parser, "the checkpoint that was asked", required=True)
    parser.add_argument("--score", help="the score that decided, where predict was given one")
    parser.add_argument(
        "--output", metavar="FILE", default="review.html", help="the page (default: %(default)s)"
    )
    parser.add_argument(
        "--most",
        type=int,
        default=5000,
        help="unknown images on the page; of more, so many are drawn at random (default: %(default)s)",
    )
    add_machine(parser, "threads that read")
    add_trust(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: for a mistake in the options or files.
    """
    options = parse(build_parser(), arguments)
    _check(options)
    path = existing(options.ckpt_path)
    if is_exported(path):
        raise UserError(
            f"{path} gives no features, by which images are grouped: give the checkpoint that it was made of"
        )
    from osr_lightning.deploy.predict import Counts
    from osr_lightning.deploy.review.groups import group
    from osr_lightning.deploy.review.images import choose, look
    from osr_lightning.deploy.review.page import render
    from osr_lightning.recogniser import checkpoint

    recogniser = checkpoint.load(path, trust=options.trust_checkpoint, device=options.device)
    with telling_calibrated(path, "osr review --ckpt_path", options.score):
        recogniser.decide_by(options.score)
    _refuse_without_features(recogniser, path)
    counts = Counts()
    chosen = choose(_answered(options, recogniser, counts), options.most)
    if not chosen.unknown:
        said = f"none of {chosen.answers:,} images is called unknown: there is nothing to review, and no page"
        print(" ".join([f"{said}." if counts.unreadable else said, *_unread(counts)]))
        return 0
    with progress(len(chosen.images), 0) as advance:
        seen = list(look(recogniser, chosen.images, workers=options.workers, advance=advance))
    unknown = [one.features for one in seen if one.image.known < 0]
    if not unknown:
        raise UserError("none of the unknown images can be read any more; put them back, or predict again")
    groups = group(unknown)
    score, threshold = recogniser.threshold.score, recogniser.threshold.value
    about = (
        f"{chosen.unknown:,} of {chosen.answers:,} images are called unknown: their {score} is above "
        f"{threshold:.6g}, the threshold of {path}."
    )
    notes = _notes(chosen, seen, counts)
    page = render(seen, groups, recogniser.spec, recogniser.threshold, about, " ".join(notes))
    write_text(options.output, page)
    _show(options.output, seen, groups, recogniser, [about, *notes])
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("workers", "most"):
        check_range("--", vars(options), name, lambda value: value >= 1, "be at least 1")
    options.output = check_place("--output", options.output, [".html", ".htm"])
    for path in options.paths:
        if Path(path).suffix.lower() in FORMATS and not _is_table(path):
            raise UserError(f"{path} is no CSV: predict again with --output {Path(path).with_suffix('.csv')}")


def _is_table(path: str) -> bool:
    return Path(path).suffix.lower() == ".csv"


def _answered(options: argparse.Namespace, recogniser: Recogniser, counts: Counts) -> Iterator[Answered]:
    from osr_lightning.deploy.review.images import from_files, from_table

    for path in filter(_is_table, options.paths):
        yield from from_table(path, recogniser, counts)
    files = [path for path in options.paths if not _is_table(path)]
    if files:
        yield from from_files(files, recogniser, options.workers, counts)


def _refuse_without_features(recogniser: Recogniser, path: Path) -> None:
    try:
        _ = recogniser.sampler.last_layer
    except UserError as error:
        raise UserError(
            f"{path}: images are grouped by what the last nn.Linear sees, and its network ends otherwise; "
            "review those of another network"
        ) from error


def _unread(counts: Counts) -> list[str]:
    """A sentence about the images that nothing was said of, if there are any."""
    count = counts.unreadable
    return [f"{count:,} further image{'s' * (count != 1)} could not be read."] if count else []


def _notes(chosen: Chosen, seen: Sequence[Seen], counts: Counts) -> list[str]:
    """Sentences about the images that are not shown."""
    from osr_lightning.deploy.review.images import missing

    notes = _unread(counts)
    if chosen.drawn < chosen.unknown:
        notes.append(f"Shown are {chosen.drawn:,} of them, drawn at random (--most).")
    if chosen.gone:
        wanted = len(chosen.images) + len(chosen.gone)
        notes.append(f"{missing(chosen.gone, wanted)}: put them back to see them.")
    if unreadable := len(chosen.images) - len(seen):
        notes.append(f"{unreadable:,} cannot be read any more.")
    return notes


def _show(
    output: Path, seen: Sequence[Seen], groups: Groups, recogniser: Recogniser, lines: Sequence[str]
) -> None:
    import numpy as np
    from rich.console import Console

    from osr_lightning.evaluation.console import new_table

    console = Console(highlight=False, markup=False)
    console.print(one_line(" ".join(lines)), soft_wrap=True)
    if len(groups.coherence):
        table = new_table(console, "group", "images", "coherence", "most like")
        for number, coherence in enumerate(groups.coherence):
            rows = np.flatnonzero(groups.labels == number).tolist()
            like = np.bincount([int(seen[row].probabilities.argmax()) for row in rows])
            name = one_line(recogniser.spec.classes[int(like.argmax())])
            share = like.max() / len(rows)
            table.add_row(f"{number + 1}", f"{len(rows):,}", f"{coherence:.2f}", f"{name} ({share:.0%})")
        console.print(table)
    found, alone = len(groups.coherence), int((groups.labels < 0).sum())
    console.print(
        one_line(
            f"{output}: {found} group{'s' * (found != 1)}, {alone:,} images in none; open it in a browser, "
            "name the groups, and give its labels.csv to osr extend"
        ),
        soft_wrap=True,
    )
