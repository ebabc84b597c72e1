"""``osr ensemble``: trained checkpoints side by side on the sample axis, as one checkpoint.

The first checkpoint says how the threshold is chosen and on which images, and no member may have been trained
on one of them. Members of one split, as those of a study's seeds, always fulfil that; for others the images
that each checkpoint keeps digests of decide.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from osr_lightning import checkpoint as checkpoints
from osr_lightning.cli import OpenSetCLI
from osr_lightning.data.audit import Seen, read_seen
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.models.ensemble import Ensemble
from osr_lightning.models.factory import Recipe, origin
from osr_lightning.models.sampling import Sampler
from osr_lightning.recogniser import Recogniser
from osr_lightning.settings import is_trusted
from osr_lightning.studies.arguments import parse
from osr_lightning.training.base import OpenSetClassifier
from osr_lightning.training.calibrating import calibrate_checkpoint, tell
from osr_lightning.training.console import say
from osr_lightning.training.loggers import run_folder

NAME = "ensemble.ckpt"
# of the first checkpoint: how it was trained, which images, and what Lightning reads
_KEPT = ("pytorch-lightning_version", "epoch", "global_step", "experiment", "seed", "hyper_parameters")
_KEPT_DATA = ("datamodule_hyper_parameters", "datamodule_hparams_name", "hparams_name")


class Member(NamedTuple):
    """A checkpoint that is to be joined."""

    path: Path
    checkpoint: dict[str, Any]
    recogniser: Recogniser
    seen: Seen


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
        before = read_seen(checkpoints.read(ckpt_path)["images"])
        calibrate_checkpoint(trainer, model, datamodule, ckpt_path, ckpt_path, False)  # type: ignore[arg-type]
        folder = run_folder(trainer)
        if output is None and folder is None:
            raise UserError("without a run folder, name the ensemble's file with --output")
        self.target = Path(output) if output else Path(str(folder), "checkpoints", NAME)
        if trainer.is_global_zero:
            whole, seen = checkpoints.read(ckpt_path), model.images_seen
            if before is not None and seen is not None:  # what chose the members' epochs is not new either
                whole["images"] = seen.joined(before)._asdict()
            checkpoints.write(whole, self.target)
        tell(model, self.target)


def ensemble(
    paths: Sequence[str | PathLike[str]],
    output: str | PathLike[str] | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Join trained checkpoints into one, and calibrate it on the first one's validation images.

    Args:
        paths: of checkpoints of the same facts; one that is an ensemble brings its members.
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
    joined = join(paths, trust=is_trusted(options))
    members = joined["recogniser"]["recipe"]["members"]
    say(f"ensemble of {len(members)}: {', '.join(str(one.get('file')) for one in members)}")
    with TemporaryDirectory() as folder:
        passing = Path(folder, NAME)
        checkpoints.write(joined, passing)
        place = [] if output is None else [f"--output={output}"]
        return EnsembleCLI(["calibrate", f"--ckpt_path={passing}", *place, *options]).target


def join(paths: Sequence[str | PathLike[str]], *, trust: bool = False) -> dict[str, Any]:
    """The checkpoint of an ensemble, without a threshold.

    Args:
        paths: see `ensemble`.
        trust: see `osr_lightning.checkpoint.load`.

    Raises:
        UserError: where there are none, or they do not fit together.
    """
    if not paths:
        raise UserError("an ensemble needs at least one checkpoint")
    members = [_read(Path(path), trust) for path in paths]
    first, *others = members
    seen = first.seen
    state: dict[str, Any] = {}
    recipes: list[Recipe] = []
    for other in others:
        _refuse_other_facts(first, other)
        _refuse_other_split(first, other)
        seen = seen.joined(other.seen)
    for member in members:
        for recipe, sampler in _parts(member):
            prefix = f"{checkpoints.PREFIX}sampler.members.{len(recipes)}."
            state |= {prefix + name: value for name, value in sampler.state_dict().items()}
            recipes.append(recipe)
    kept = first.checkpoint["recogniser"]
    decides = {name: kept["recipe"].get(name) for name in ("score", "fixed", "detectors")}
    return {
        **{name: first.checkpoint[name] for name in (*_KEPT, *_KEPT_DATA) if name in first.checkpoint},
        "state_dict": state | {f"{checkpoints.PREFIX}threshold._extra_state": {"records": {}}},
        "images": seen._asdict(),
        "recogniser": {**kept, "recipe": {"sampler": "ensemble", "members": recipes, **decides}},
    }


def main(arguments: Sequence[str]) -> None:
    """The command ``osr ensemble``.

    Args:
        arguments: those after the command's name.
    """
    parser = argparse.ArgumentParser(
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
        allow_abbrev=False,
    )
    parser.add_argument("--output", metavar="FILE", help=f"default: checkpoints/{NAME} in a new run folder")
    paths, own, others = parse(
        parser, arguments, "the checkpoints first, as in osr ensemble RUN/checkpoints/best.ckpt ..."
    )
    ensemble(paths, own.output, others)


def _read(path: Path, trust: bool) -> Member:
    recogniser = checkpoints.load(path, trust=trust)
    checkpoint = checkpoints.read(path)
    with checkpoints.reading(path):
        seen = read_seen(checkpoint.get("images"))
    if seen is None or "datamodule_hyper_parameters" not in checkpoint:
        raise UserError(
            f"{path} does not say which images it was trained on (it is of 0.1, or was written by save), so "
            "that none can choose the ensemble's threshold; train it again"
        )
    return Member(path, checkpoint, recogniser, seen)


def _parts(member: Member) -> list[tuple[Recipe, Sampler]]:
    """Its samplers; those of an ensemble, however deep, keep the files that they came from."""

    def flat(sampler: Sampler) -> list[Sampler]:
        if not isinstance(sampler, Ensemble):
            return [sampler]
        return [part for one in sampler.members for part in flat(one)]  # type: ignore[arg-type]

    sampler = member.recogniser.sampler
    if isinstance(sampler, Ensemble):
        return [(part.recipe, part) for part in flat(sampler)]
    own = origin({"file": str(member.path), "seed": member.checkpoint.get("seed")})
    return [(own | sampler.recipe, sampler)]


def _refuse_other_facts(first: Member, other: Member) -> None:
    """Stop at the first fact in which two members differ.

    Raises:
        UserError: naming the file and the fact.
    """
    expected, found = first.recogniser.facts, other.recogniser.facts
    for name, value in found._asdict().items():
        if value != (wanted := getattr(expected, name)):
            shown, other_shown = (str(list(v) if isinstance(v, tuple) else v) for v in (value, wanted))
            way_out = "train the members on the same known images"
            if name in ("mean", "std"):
                way_out += " and data.seed, or give all of them one data.mean and data.std"
            raise UserError(
                f"{other.path} has the {name.replace('_', ' ')} {shown[:200]}, where {first.path} has "
                f"{other_shown[:200]}; {way_out}"
            )


def _refuse_other_split(first: Member, other: Member) -> None:
    """Stop where a member was trained on images that the first one held out to choose the threshold.

    Raises:
        UserError: with their number.
    """
    if count := first.seen.held_out_from(other.seen):
        raise UserError(
            f"{other.path} was trained on {count} of the images that {first.path} held out, and those are to "
            "choose the ensemble's threshold; train the members with the same data.seed and data.val_fraction"
        )
