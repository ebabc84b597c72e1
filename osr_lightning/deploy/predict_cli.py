"""The options of ``osr predict``, its progress bar and its summary."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from osr_lightning.deploy import sinks
from osr_lightning.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = argparse.ArgumentParser(
        "osr predict",
        description="Name what is in each image file, or call it unknown: one row per file.",
        epilog="Without PATH, the images of data.predict are classified with the options of `osr test`, into "
        "a run folder (osr predict --help-all). Under torchrun, the processes share the files.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="files, folders (with all below), globs")
    parser.add_argument(
        "--ckpt_path", metavar="CKPT", help="what to ask: a checkpoint, or an .onnx file of osr export"
    )
    parser.add_argument(
        "--output",
        default="-",
        metavar="FILE",
        help="ends in .csv, .jsonl or .parquet; - is CSV on standard output (default: -)",
    )
    parser.add_argument("--score", help="the score that decides; the checkpoint's if not given")
    parser.add_argument("--threshold", type=float, help="above it an image is unknown; the calibrated one")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a file could not be read")
    parser.add_argument("--device", default="auto", help="cpu, cuda, … (default: auto)")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="threads that read (default: %(default)s)",
    )
    parser.add_argument(
        "--trust_checkpoint",
        action="store_true",
        help="the checkpoint may import a network of one's own, which runs its code",
    )
    return parser


def wanted(arguments: Sequence[str]) -> bool:
    """Whether the arguments after ``predict`` name files, or ask for help, not a datamodule's images."""
    if any(argument in ("-h", "--help") for argument in arguments):
        return True
    foreign = ("--data.", "--model", "--trainer.", "--config", "--evaluation.", "--seed_everything")
    others = ("--print_config", "--help-all", "--optimizer", "--lr_scheduler", "--weights_only")
    if any(argument.startswith((*foreign, *others)) for argument in arguments):
        return False
    try:
        known, _ = build_parser().parse_known_args(arguments)
    except SystemExit:
        return True  # the parser below says what is wrong
    return bool(known.paths)


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: for a mistake in the options, or where there is nothing to classify.
    """
    options = build_parser().parse_args(arguments)
    if options.ckpt_path is None:
        raise UserError("predict needs a trained checkpoint: add --ckpt_path RUN/checkpoints/best.ckpt")
    if options.workers < 1:
        raise UserError(f"--workers must be at least 1, got {options.workers}")
    sinks.check(options.output)
    if not any(os.path.lexists(os.path.expanduser(p)) or any(c in p for c in "*?[") for p in options.paths):
        raise UserError(f"there is no {' and no '.join(options.paths[:3])}; name files, folders or globs")

    from osr_lightning.deploy.opening import is_exported, load
    from osr_lightning.deploy.predict import Counts, classify, columns, images

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = options.device
    if is_exported(options.ckpt_path):
        _check_exported(device, world)
    elif device == "auto":
        device = _device()
    recogniser = load(options.ckpt_path, trust=options.trust_checkpoint, device=device)
    recogniser.decide_by(options.score, options.threshold)
    counts = Counts()
    total = sum(1 for _ in images(options.paths, counts))
    if not total:
        raise UserError(f"there are no images in {', '.join(options.paths)} ({counts.skipped} other files)")
    with _process_group(world), _progress(total, rank) as advance:
        work = {"workers": options.workers, "rank": rank, "world": world, "advance": advance}
        if rank == 0:
            with sinks.opened(options.output, columns(recogniser)) as sink:
                classify(recogniser, images(options.paths), sink, counts, **work)
        else:
            classify(recogniser, images(options.paths), lambda rows: None, Counts(), **work)
    if rank == 0:
        where = "" if options.output == "-" else f": {options.output}"
        print(f"{counts}{where}", file=sys.stderr)
    return int(options.strict and counts.unreadable > 0)


def _device() -> str:
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def _check_exported(device: str, world: int) -> None:
    """What an exported graph, which must do without torch, cannot."""
    if device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: an exported graph runs on the CPU; leave the option out")
    if world > 1:
        raise UserError("an exported graph runs in one process; start it without torchrun")


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
def _progress(total: int, rank: int) -> Iterator[Callable[[int], None]]:
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
