"""``osr predict``: a row for every image file, or for every image of a source."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from osr_lightning.cli.arguments import (
    CommandParser,
    add_checkpoint,
    add_decision,
    add_machine,
    add_trust,
    names,
    parse,
)
from osr_lightning.cli.checkpoint_path import existing, telling_calibrated
from osr_lightning.deploy.load import is_exported
from osr_lightning.errors import UserError, check_range, one_line
from osr_lightning.recogniser.rows import check_output, columns, open_rows

# how an option begins that belongs to a datamodule's images and to a trainer
_OF_SOURCES = (
    *("--data.", "--model", "--trainer.", "--config", "--evaluation.", "--seed_everything"),
    *("--print_config", "--help-all", "--optimizer", "--lr_scheduler", "--verbose"),
)


def build_parser(*, files: bool = True) -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy.

    Args:
        files: whether it takes the paths of files.
    """
    parser = CommandParser(
        "osr predict",
        description="Name what is in each image, or call it unknown: one row per image.",
        epilog="With --data.predict SOURCE in place of PATH, the images of a source (mnist, npz:FILE, "
        "folder:DIR with labels ...) are classified, into predictions.csv of a run folder unless --output "
        "names a file; osr predict --help-all has the further options. Under torchrun, processes share the "
        "images.",
    )
    if files:
        parser.add_argument("paths", nargs="*", metavar="PATH", help="files, folders (with all below), globs")
    add_checkpoint(parser, "what to ask: a checkpoint, or an .onnx file of osr export")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="ends in .csv, .jsonl or .parquet; - is CSV on standard output (default: -)",
    )
    add_decision(parser)
    parser.add_argument(
        "--fdr",
        type=float,
        metavar="SHARE",
        help="decide about all images together, so that of those called unknown at most this share is known, "
        "on average, instead of by a threshold",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a file could not be read")
    add_machine(parser, "threads that read")
    add_trust(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: for a mistake in the options, or where there is nothing to classify.
    """
    asks = any(word in ("-h", "--help") for word in arguments)
    if not asks and any(word.startswith(_OF_SOURCES) for word in arguments):
        return _sources(arguments)
    options = parse(build_parser(), arguments)
    if options.ckpt_path is None:
        raise UserError("predict needs a trained checkpoint: add --ckpt_path RUN/checkpoints/best.ckpt")
    refuse_both(options)
    if not options.paths and is_exported(options.ckpt_path):
        raise UserError(f"name the images after it: osr predict --ckpt_path {options.ckpt_path} PATH …")
    return _files(options) if options.paths else _sources(arguments)


def refuse_both(options: argparse.Namespace) -> None:
    """Stop where two options would each decide.

    Raises:
        UserError: naming them.
    """
    if options.fdr is not None and options.threshold is not None:
        raise UserError("--fdr chooses the threshold itself: leave --threshold out, or --fdr")


def _sources(arguments: Sequence[str]) -> int:
    """Classify the images of a datamodule."""
    from osr_lightning.cli.main import with_lightning

    parser = build_parser(files=False)
    own, further = parser.parse_known_args(arguments)
    refuse_both(own)
    if not any(word == "--help-all" or ".help" in word for word in further):
        from osr_lightning.cli.messages import read_options

        read_options("predict", further, names(parser))
    instead = {"device": "--trainer.accelerator", "workers": "--data.num_workers", "strict": ""}
    for name, other in instead.items():
        if getattr(own, name) != build_parser().get_default(name):
            way_out = f"use {other}" if other else "leave it out, as a source that cannot be read is refused"
            raise UserError(f"--{name} is for files that are named; for the images of a source {way_out}")
    if own.ckpt_path is not None:
        further.append(f"--ckpt_path={own.ckpt_path}")
    if own.output is not None:
        further.append(f"--output={check_output(own.output)}")
    if own.score is not None:
        further.append(f"--model.score={own.score}")
    if own.fdr is not None:
        further.append(f"--fdr={own.fdr}")
    if own.threshold is not None:
        further += ["--model.calibration=fixed", f"--model.threshold={own.threshold}"]
    with_lightning(["predict", *further, *(["--trust_checkpoint"] if own.trust_checkpoint else [])])
    return 0


def _files(options: argparse.Namespace) -> int:
    check_range("--", vars(options), "workers", lambda value: value >= 1, "be at least 1")
    output = check_output(options.output or "-")

    from osr_lightning.images.find import check_named

    for path in options.paths:
        check_named(path)
    if not any(os.path.lexists(os.path.expanduser(p)) or any(c in p for c in "*?[") for p in options.paths):
        raise UserError(f"there is no {' and no '.join(options.paths[:3])}; name files, folders or globs")

    from osr_lightning.deploy.load import load
    from osr_lightning.deploy.predict import Counts, classify, deciding_together, images
    from osr_lightning.scoring.p_values import check_rate

    rank, world = _processes()
    if is_exported(options.ckpt_path) and world > 1:
        raise UserError("an exported graph runs in one process; start it without torchrun")
    path = existing(options.ckpt_path)
    recogniser = load(path, trust=options.trust_checkpoint, device=options.device)
    with telling_calibrated(path, "osr predict --ckpt_path", options.score):
        recogniser.decide_by(options.score, options.threshold)
    record = recogniser.threshold.record
    if options.fdr is not None:
        check_rate(record, options.fdr)
        recogniser.decide_by(threshold=sys.float_info.max)  # the likeliest class, until all are there
    counts = Counts()
    total = sum(1 for _ in images(options.paths, counts))
    if not total:
        others = f", but {counts.skipped:,} other files: {counts.others}" if counts.skipped else ""
        raise UserError(f"there are no images in {', '.join(options.paths)}{others}")
    with _process_group(world), progress(total, rank) as advance:
        work = {"workers": options.workers, "rank": rank, "world": world, "advance": advance}
        if rank == 0:
            names = columns(recogniser.score_names, recogniser.threshold.score)
            with open_rows(output, names, follow=True) as sink, ExitStack() as stack:
                if options.fdr is not None:
                    sink = stack.enter_context(deciding_together(record, options.fdr, sink, counts))
                classify(recogniser, images(options.paths), sink, counts, **work)
        else:
            classify(recogniser, images(options.paths), lambda rows: None, Counts(), **work)
    if rank == 0:
        where = "" if output == "-" else f": {output}"
        print(one_line(f"{counts}{where}"), file=sys.stderr)
    return int(options.strict and counts.unreadable > 0)


def _processes() -> tuple[int, int]:
    """Which process this is, and how many share the files, as torchrun's environment variables say.

    Raises:
        UserError: where they are no numbers, or lack how the others are met.
    """
    way_out = "start it with torchrun, or unset WORLD_SIZE and RANK"
    given = {
        name: os.environ.get(name) or standard for name, standard in (("RANK", "0"), ("WORLD_SIZE", "1"))
    }
    for name, value in given.items():
        if not value.isdecimal():
            raise UserError(f"the environment variable {name} is {value!r}, which is no number: {way_out}")
    rank, world = map(int, given.values())
    if rank >= max(1, world):
        raise UserError(f"this is process {rank} of {world} by the variables RANK and WORLD_SIZE: {way_out}")
    names = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    if world > 1 and (missing := [name for name in names if not os.environ.get(name)]):
        raise UserError(f"WORLD_SIZE is {world} without {' and '.join(missing)}: {way_out}")
    return rank, world


@contextmanager
def _process_group(world: int) -> Iterator[None]:
    if world == 1:
        yield
        return
    from torch import distributed

    distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextmanager
def progress(total: int, rank: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on standard error, where a person sees it."""
    if rank or not sys.stderr.isatty():
        yield lambda count: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:  # an exported graph needs onnxruntime and pillow alone
        yield lambda count: None
        return

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
