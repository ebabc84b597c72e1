"""``osr ensemble``: trained checkpoints joined into one, with a threshold of its own."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory

from osr_lightning.atomic_write import check_ending, refuse_folder
from osr_lightning.cli.arguments import CommandParser, names, split_words
from osr_lightning.cli.checkpoint_path import existing
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.messages import read_options
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.leaks import read_digests
from osr_lightning.errors import UserError
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.studies.ensemble import NAME, join
from osr_lightning.training.console import say, say_threshold
from osr_lightning.training.loggers import run_folder
from osr_lightning.training.module import OpenSetClassifier
from osr_lightning.training.trainer import OpenSetTrainer


class EnsembleCLI(OpenSetCLI):
    """``osr calibrate`` for a checkpoint that was just joined and gets its place with its threshold.

    Attributes:
        target: where the calibrated checkpoint is.
    """

    target: Path

    def before_calibrate(self) -> None:
        """Keep the passing place of the joined checkpoint out of ``config.yaml``."""
        self.config["calibrate"].ckpt_path = None

    def calibrate(
        self,
        model: OpenSetClassifier,
        datamodule: OpenSetDataModule,
        ckpt_path: str,
        output: str | None,
        in_place: bool,
    ) -> None:
        """Calibrate, and write the checkpoint to ``output`` or into the run folder."""
        trainer = self.trainer
        assert isinstance(trainer, OpenSetTrainer)
        before = read_digests(checkpoints.read(ckpt_path)["images"])
        trainer.write_calibrated(model, datamodule, ckpt_path, Path(ckpt_path))
        folder = run_folder(trainer)
        if output is None and folder is None:
            raise UserError("without a run folder, name the ensemble's file with --output")
        self.target = Path(output) if output else Path(str(folder), "checkpoints", NAME)
        if trainer.is_global_zero:
            whole, seen = checkpoints.read(ckpt_path), model.images_seen
            if before is not None and seen is not None:  # what chose the members' epochs is not new either
                whole["images"] = seen.joined(before)._asdict()
            checkpoints.write(whole, self.target, follow=output is not None)
        say_threshold(model.trained.threshold, self.target)


def ensemble(
    paths: Sequence[str | PathLike[str]],
    output: str | PathLike[str] | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Join trained checkpoints into one, and calibrate it on the first one's validation images.

    Args:
        paths: of checkpoints of one data spec; one that is an ensemble brings its members.
        output: of the ensemble; ``checkpoints/ensemble.ckpt`` in a new run folder if not given.
        options: of ``osr calibrate``, as on the command line.

    Returns:
        Where the ensemble's checkpoint is.

    Raises:
        UserError: where the checkpoints do not fit together, or no images are left to choose a threshold.
    """
    if odd := [word for word in options if word.startswith(("--ckpt_path", "--in_place"))]:
        raise UserError(f"osr ensemble takes the checkpoints alone and writes another: leave {odd[0]} out")
    if output is not None and any(Path(output).resolve() == Path(path).resolve() for path in paths):
        raise UserError(f"--output {output} is one of the members: name another file")
    found = [existing(os.fspath(path), option="") for path in paths]
    for number, path in enumerate(found):
        if any(path.samefile(other) for other in found[:number]):
            raise UserError(f"{path} is named twice, and a member weighs as much as any other: name it once")
    if output is not None:
        refuse_folder(output)
        check_ending("--output", output, [".ckpt"])
    trusted = any(word in ("--trust_checkpoint", "--trust_checkpoint=true") for word in options)
    joined = join(found, trust=trusted)
    members = joined["recogniser"]["recipe"]["members"]
    say(f"ensemble of {len(members)}: {', '.join(str(one.get('file')) for one in members)}")
    with TemporaryDirectory() as folder:
        passing = Path(folder, NAME)
        checkpoints.write(joined, passing)
        place = [] if output is None else [f"--output={output}"]
        return EnsembleCLI(["calibrate", f"--ckpt_path={passing}", *place, *options]).target


def build_parser() -> argparse.ArgumentParser:
    """The ensemble's own options; all others are those of ``osr calibrate``."""
    parser = CommandParser(
        "osr ensemble",
        usage="osr ensemble CKPT [CKPT ...] [--output FILE] [options of osr calibrate]",
        description="Join trained checkpoints (CKPT, the first words) into one that asks all of them: their "
        "samples are averaged, so that a member weighs by its number of samples. They must have the same "
        "classes in the same order, channels, image size, mean and std; plain networks, MC dropout and "
        "ensembles may be mixed. Nothing is trained.",
        epilog="Score, method, alpha and images of the threshold, and the detectors to fit, are those of the "
        "first checkpoint unless given (as --model.alpha 0.01, --data.root DATA). The threshold is chosen on "
        "its validation images, and refused where another member was trained on one of them. test, predict, "
        "validate and calibrate then take the ensemble as any checkpoint.",
    )
    parser.add_argument("--output", metavar="FILE", help=f"default: checkpoints/{NAME} in a new run folder")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Join checkpoints.

    Args:
        arguments: of the command line, after ``ensemble``.

    Raises:
        UserError: for a mistake in them, or checkpoints that do not fit together.
    """
    parser = build_parser()
    paths, own, others = split_words(
        parser, arguments, "the checkpoints first, as in osr ensemble RUN/checkpoints/best.ckpt ..."
    )
    read_options("calibrate", others, names(parser))
    ensemble(paths, own.output, others)
