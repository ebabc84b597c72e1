"""``osr explain``: why images are known or unknown, as a page and as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from osr_lightning.atomic_write import as_text, check_place, write_bytes
from osr_lightning.cli.arguments import CommandParser, add_checkpoint, add_decision, add_trust, parse
from osr_lightning.cli.checkpoint_path import existing, telling_calibrated
from osr_lightning.errors import UserError, one_line

if TYPE_CHECKING:
    from osr_lightning.deploy.explain import Explained
    from osr_lightning.deploy.predict import Image
    from osr_lightning.recogniser.recogniser import Recogniser

MOST = 500  # images of one page
_PAGE = "explain.html"


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = CommandParser(
        "osr explain",
        description="Say of each image why it is known or unknown: the score's parts, the nearest known "
        "images, and a map of where the unusual is.",
    )
    parser.add_argument("paths", nargs="+", metavar="IMAGE", help="files, folders (with all below), globs")
    add_checkpoint(parser, "the checkpoint to ask", required=True)
    parser.add_argument(
        "--output", metavar="FILE", help=f"the page (default: {_PAGE}, none where --json is given alone)"
    )
    parser.add_argument("--json", metavar="FILE", help="the same for programs; - is standard output")
    add_decision(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto)")
    add_trust(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: for a mistake in the options, or where there is nothing to explain.
    """
    options = parse(build_parser(), arguments)
    page = options.output or (None if options.json else _PAGE)
    if page == "-":
        raise UserError("--output -: a page goes to a file; --json - writes JSON to standard output")
    if page:
        page = str(check_place("--output", page, [".html"]))
    if options.json not in (None, "-"):
        options.json = str(check_place("--json", options.json, [".json"]))

    from osr_lightning.deploy.load import is_exported
    from osr_lightning.images.find import check_named

    for named in options.paths:
        check_named(named)
    if is_exported(options.ckpt_path):
        raise UserError(
            f"{options.ckpt_path} is an exported graph, whose layers cannot be looked into: give --ckpt_path "
            "the checkpoint (.ckpt) that it was made of"
        )
    path = existing(options.ckpt_path)

    from osr_lightning.deploy.explain import to_json, to_page
    from osr_lightning.deploy.predict import images
    from osr_lightning.recogniser.checkpoint import load

    found = list(images(options.paths))
    if not found:
        raise UserError(f"there are no images in {', '.join(options.paths)}")
    if len(found) > MOST:
        raise UserError(
            f"these are {len(found):,} images, and a page has {MOST} at most: osr predict says which are "
            "worth it, name those"
        )
    recogniser = load(path, trust=options.trust_checkpoint, device=options.device)
    with telling_calibrated(path, "osr explain --ckpt_path", options.score):
        recogniser.decide_by(options.score, options.threshold)
    explained = list(_explained(recogniser, found))
    if all(one.error for one in explained):
        raise UserError(explained[0].error)
    classes, name = recogniser.spec.classes, as_text(path.name)
    told = to_json(explained, classes, name) if options.json else {}
    if options.json == "-":
        print(json.dumps(told))
    elif options.json:
        write_bytes(options.json, (json.dumps(told) + "\n").encode(), follow=True)
    if page:
        text = to_page(explained, classes, name)
        write_bytes(page, text.encode("utf-8", "backslashreplace"), follow=True)
    print(one_line(_summary(explained, page, options.json)), file=sys.stderr)


def _explained(recogniser: Recogniser, found: Sequence[Image]) -> Iterator[Explained]:
    from osr_lightning.deploy.explain import Explained

    for image in found:
        name = as_text(image.path)
        try:
            pixels = recogniser.prepare(image.path)
        except UserError as error:
            yield Explained(name, None, str(error))
            continue
        yield Explained(name, recogniser.explain_pixels(pixels, name))


def _summary(explained: Sequence[Explained], page: str | None, told: str | None) -> str:
    unreadable = sum(bool(one.error) for one in explained)
    unknown = sum(one.why is not None and one.why.prediction.unknown for one in explained)
    text = f"{len(explained) - unreadable:,} explained ({unknown:,} unknown)"
    text += f", {unreadable:,} unreadable" if unreadable else ""
    where = ", ".join(file for file in (page, told) if file not in (None, "-"))
    return f"{text}: {where}" if where else text
