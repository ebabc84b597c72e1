"""Ensembles: trained checkpoints side by side on the sample axis, as one checkpoint.

The first checkpoint says how the threshold is chosen and on which images, and no member may have been trained
on one of them. Members of one split, as those of a study's seeds, always fulfil that; for others the images
that each checkpoint keeps digests of decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from osr_lightning.data.leaks import ImageDigests, read_digests
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import digest_of
from osr_lightning.models.ensemble import Ensemble, same_body, share_body
from osr_lightning.models.factory import Recipe, origin
from osr_lightning.models.sampling import LogitSampler
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.calibration import CROSS

NAME = "ensemble.ckpt"
# of the first checkpoint: how it was trained, which images, and what Lightning reads
_KEPT = ("pytorch-lightning_version", "epoch", "global_step", "experiment", "seed", "hyper_parameters")
_KEPT_DATA = ("datamodule_hyper_parameters", "datamodule_hparams_name", "hparams_name")


class Member(NamedTuple):
    """A checkpoint that is to be joined."""

    path: Path
    checkpoint: dict[str, Any]
    recogniser: Recogniser
    seen: ImageDigests


def join(paths: Sequence[str | PathLike[str]], *, trust: bool = False) -> dict[str, Any]:
    """The checkpoint of an ensemble, without a threshold.

    Args:
        paths: see `ensemble`.
        trust: see `osr_lightning.recogniser.checkpoint.load`.

    Raises:
        UserError: where there are none, or they do not fit together.
    """
    if not paths:
        raise UserError("an ensemble needs at least one checkpoint")
    members = [_read(Path(path), trust) for path in paths]
    first, *others = members
    seen = first.seen
    for other in others:
        _refuse_other_facts(first, other)
        _refuse_other_split(first, other)
        _refuse_other_mirror(first, other)
        seen = seen.joined(other.seen)
    _refuse_copies(members)
    parts = [part for member in members for part in _parts(member)]
    recipes = [recipe for recipe, _ in parts]
    samplers = [sampler for _, sampler in parts]
    made: Recipe = {"sampler": "ensemble", "members": recipes}
    if same_body(samplers):
        made["shared_body"] = all(share_body(samplers[0], sampler) for sampler in samplers)
    joined = Ensemble(samplers).state_dict(prefix=f"{checkpoints.PREFIX}sampler.")
    kept = first.checkpoint["recogniser"]
    decides = {name: kept["recipe"].get(name) for name in ("score", "fixed", "detectors", "mirror")}
    return {
        **{name: first.checkpoint[name] for name in (*_KEPT, *_KEPT_DATA) if name in first.checkpoint},
        "state_dict": {**joined, f"{checkpoints.PREFIX}threshold._extra_state": {"records": {}}},
        "images": seen._asdict(),
        "recogniser": {**kept, "known_images": None, "recipe": made | decides},
    }


def _read(path: Path, trust: bool) -> Member:
    recogniser = checkpoints.load(path, trust=trust)
    checkpoint = checkpoints.read(path)
    with checkpoints.reading(path):
        seen = read_digests(checkpoint.get("images"))
    if seen is None or "datamodule_hyper_parameters" not in checkpoint:
        raise UserError(
            f"{path} does not say which images it was trained on (it is of 0.1, or was written by save), so "
            "that none can choose the ensemble's threshold; train it again"
        )
    if any(record.method == CROSS for record in recogniser.threshold.records.values()):
        raise UserError(
            f"{path} was fitted to its validation images as well ({CROSS}), so that none can choose the "
            "ensemble's threshold; train the members with --model.calibration known_quantile"
        )
    return Member(path, checkpoint, recogniser, seen)


def _parts(member: Member) -> list[tuple[Recipe, LogitSampler]]:
    """Its samplers; those of an ensemble, however deep, keep the files that they came from."""

    def flat(sampler: LogitSampler) -> list[LogitSampler]:
        if not isinstance(sampler, Ensemble):
            return [sampler]
        return [part for one in sampler.members for part in flat(one)]  # type: ignore[arg-type]

    sampler = member.recogniser.sampler
    if isinstance(sampler, Ensemble):
        return [(part.recipe, part) for part in flat(sampler)]
    own = origin({"file": str(member.path), "seed": member.checkpoint.get("seed")})
    return [(own | sampler.recipe, sampler)]


def _refuse_other_mirror(first: Member, other: Member) -> None:
    mirror = first.recogniser.sampler.mirror
    if other.recogniser.sampler.mirror != mirror:
        looks, not_so = (first, other) if mirror else (other, first)
        raise UserError(
            f"{looks.path} looks at mirror images too (model.mirror), and {not_so.path} does not: one that "
            f"does is made by osr calibrate --ckpt_path {not_so.path} --model.mirror true"
        )


def _refuse_copies(members: Sequence[Member]) -> None:
    """Stop where one network, with the same weights and masks, would be counted twice.

    Raises:
        UserError: naming both files.
    """
    whose: dict[str, Path] = {}
    for member in members:
        for _, part in _parts(member):
            before = whose.setdefault(digest_of(part.state_dict()), member.path)
            if before is not member.path:
                raise UserError(
                    f"{member.path} holds a network of {before} once more, which would count "
                    "twice: give each training once"
                )


def _refuse_other_facts(first: Member, other: Member) -> None:
    """Stop at the first fact in which two members differ.

    Raises:
        UserError: naming the file and the fact.
    """
    expected, found = first.recogniser.spec, other.recogniser.spec
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
