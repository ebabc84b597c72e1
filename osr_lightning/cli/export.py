"""``osr export``: its options, and what it says."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from osr_lightning.atomic_write import check_place
from osr_lightning.cli.arguments import CommandParser, add_checkpoint, add_decision, add_trust, parse
from osr_lightning.cli.checkpoint_path import existing, telling_calibrated
from osr_lightning.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from osr_lightning.deploy.predict import Image
    from osr_lightning.images.pixels import ImageLike
    from osr_lightning.recogniser.recogniser import Recogniser


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = CommandParser(
        "osr export",
        description="Write a trained recogniser as one file: standardisation, samples, score, threshold and "
        "decision in one graph, with uint8 images as its input.",
        epilog="The graph is asked about images before it gets its name, and dropped where it does not "
        "decide as the checkpoint does.",
    )
    add_checkpoint(parser, "the checkpoint to export", required=True)
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=".onnx for onnxruntime or .pt2 for torch (default: the checkpoint's name with .onnx)",
    )
    parser.add_argument(
        "--page",
        metavar="FOLDER",
        help="write a page for any static web host instead, which runs the graph in a browser",
    )
    parser.add_argument(
        "--page_runtime",
        metavar="FOLDER",
        help="the unpacked npm package onnxruntime-web, for --page (default: npm fetches it)",
    )
    add_decision(parser)
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        default=(),
        help="further images to check the graph with: files, folders, globs",
    )
    parser.add_argument(
        "--int8",
        nargs="+",
        metavar="PATH",
        default=(),
        help="quantise to 8 bits by the activations of these known images: files, folders, globs",
    )
    parser.add_argument(
        "--no_examples",
        action="store_true",
        help="leave out the pictures of classes that the checkpoint keeps for the page of osr serve",
    )
    add_trust(parser)
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: for a mistake in the options, or what cannot be exported.
        Failure: where the graph does not decide as the checkpoint.
    """
    options = parse(build_parser(), arguments)
    path = existing(options.ckpt_path)
    if options.page and options.output:
        raise UserError("--page and --output: a page has its own .onnx file; give one of them")
    page, runtime = _page(options.page, options.page_runtime)
    file = options.output or path.with_suffix(".onnx")
    output = page / "model.onnx" if page else check_place("--output", file, (".onnx", ".pt2"))

    from osr_lightning.deploy.export import TOLERANCE, example_images, export
    from osr_lightning.deploy.predict import images
    from osr_lightning.recogniser.checkpoint import load

    recogniser = load(path, trust=options.trust_checkpoint)
    with telling_calibrated(path, "osr export --ckpt_path", options.score):
        recogniser.decide_by(options.score, options.threshold)
    if options.no_examples:
        recogniser.examples = {}
    int8 = _prepared(recogniser, images(options.int8)) if options.int8 else None
    asked = _prepared(recogniser, images(options.images), example_images())
    check = export(recogniser, output, asked, int8)
    deciding = recogniser.threshold
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    print(f"{output}: {size}, score {deciding.score}, threshold {deciding.value:.6g}", file=sys.stderr)
    told = (
        f"int8: {check.otherwise} of {check.images} images are decided otherwise"
        if options.int8
        else f"checked with {check.images} images in batches of 1, 2 and 7: scores differ by up to "
        f"{check.difference:.1e}, decisions by none ({check.within} images within {TOLERANCE:g} of the "
        "threshold)"
    )
    print(told, file=sys.stderr)
    if page:
        from osr_lightning.deploy.page.folder import write_page
        from osr_lightning.deploy.page.runtime import PACKAGE, VERSION

        write_page(page, runtime)
        print(
            f"{page / 'index.html'}: the page, with {PACKAGE} {VERSION}, for any web host; to see it here: "
            f"python -m http.server --bind 127.0.0.1 --directory {page}",
            file=sys.stderr,
        )


def _page(folder: str | None, runtime: str | None) -> tuple[Path | None, dict[str, bytes]]:
    """Where a page is to be written, and what runs its graph, before the checkpoint is read."""
    if folder is None:
        if runtime is not None:
            raise UserError(f"--page_runtime {runtime} is of a page: give --page FOLDER as well")
        return None, {}
    from osr_lightning.deploy.page.folder import check_page_folder
    from osr_lightning.deploy.page.runtime import read_runtime

    page = Path(folder).expanduser()
    check_page_folder(page)
    return page, read_runtime(None if runtime is None else Path(runtime).expanduser())


def _prepared(
    recogniser: Recogniser, found: Iterable[Image], examples: Iterable[ImageLike] = ()
) -> NDArray[np.uint8]:
    import numpy as np

    rows = [recogniser.prepare(image) for image in (*examples, *(image.path for image in found))]
    return np.stack(rows) if rows else np.zeros((0, *recogniser.spec.input_shape), np.uint8)
