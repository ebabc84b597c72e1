"""A recogniser's checkpoint: recipe, facts and weights with their thresholds. It is data: nothing in it runs.

The layout is that of Lightning, so a training's checkpoint and one written by `save` are the same to `load`::

    state_dict: {"recogniser.…": …}
    recogniser: {"version": 2, "recipe": {…}, "facts": {…}}
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch

from osr_lightning.errors import UserError
from osr_lightning.facts import Facts
from osr_lightning.migrate import VERSION, migrate
from osr_lightning.models.dropout import give_dropout
from osr_lightning.models.ensemble import Ensemble
from osr_lightning.models.factory import NetworkLike, Recipe, build_network, origin, saved_recipe
from osr_lightning.models.mc_dropout import MaskKind, MCDropout
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN
from osr_lightning.models.sampling import Sampler, Single
from osr_lightning.models.split import split
from osr_lightning.recogniser import Recogniser
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.scoring.threshold import Threshold
from osr_lightning.weights import take_weights
from osr_lightning.writing import write_bytes

PREFIX = "recogniser."
_MC_DROPOUT = {"num_samples": 10, "masks": "shared", "mask_seed": 0}


def load(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    network: NetworkLike | None = None,
    device: str | torch.device = "cpu",
) -> Recogniser:
    """Load a trained recogniser; its checkpoint is all that it takes.

    Args:
        path: of a checkpoint that training, calibration or `save` wrote.
        trust: whether the checkpoint may name code to import beside this package's own.
        network: the network, where it was made in Python and the checkpoint cannot name it.
        device: where to put it.

    Returns:
        It, ready to be asked (in eval mode).

    Raises:
        UserError: if the file is missing, damaged, or of another project, or needs trust or a network.
    """
    checkpoint = read(path)
    with reading(path):
        kept = checkpoint["recogniser"]
        recogniser = build(kept["recipe"], Facts.from_dict(kept["facts"]), network=network, trust=trust)
        weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items()}
        take_weights(recogniser, weights)
        recogniser.eval()
    return recogniser.to(device)


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a checkpoint's content makes go wrong within the block is a user's mistake, and names it.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # values of any type may stand anywhere in a stranger's file
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({type(error).__name__}: {detail}); train again") from error


def save(recogniser: Recogniser, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that `load` reads, at once or not at all."""
    state = {PREFIX + name: value for name, value in recogniser.state_dict().items()}
    write({"state_dict": state, "recogniser": content(recogniser)}, path)


def content(recogniser: Recogniser) -> dict[str, Any]:
    """What stands under ``recogniser`` in a checkpoint, beside the weights."""
    recipe = {
        **recogniser.sampler.recipe,
        "score": recogniser.threshold.score,
        "fixed": recogniser.threshold.fixed,
        "detectors": list(recogniser.detectors),
    }
    return {"version": VERSION, "recipe": recipe, "facts": recogniser.facts.to_dict()}


def write(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint at once or not at all.

    Raises:
        Failure: see `osr_lightning.writing.replacing`.
    """
    # torch's writer tells of a full disk in words of its own: it only writes to memory
    content = io.BytesIO()
    torch.save(dict(checkpoint), content)
    write_bytes(path, content)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this version or of 0.1, running nothing in it.

    Raises:
        UserError: if it is missing, damaged, or of another project.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which is not ours
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise UserError(
            f"{path} is no readable checkpoint ({type(error).__name__}); train one with osr run"
        ) from error
    with reading(path):
        return migrate(checkpoint)


def build(
    recipe: Recipe, facts: Facts, *, network: NetworkLike | None = None, trust: bool = False
) -> Recogniser:
    """Build an untrained recogniser.

    Args:
        recipe: ``sampler`` (single, mc_dropout or ensemble), ``network`` (its recipe, or None), ``score``,
            ``detectors``; ``fixed``, a threshold given as a number; of mc_dropout ``num_samples``, ``masks``,
            ``mask_seed`` and ``dropout``; of an ensemble ``members``, a list of recipes.
        facts: of the known images.
        network: goes before the recipe's.
        trust: see `load`.

    Raises:
        UserError: where the recipe or the network is none.
    """
    score, detectors = recipe.get("score"), recipe.get("detectors") or []
    for name in (score, *detectors):
        if name not in SCORES and name not in DETECTORS:
            raise UserError(f"there is no score {name!r}; the scores are {', '.join([*SCORES, *DETECTORS])}")
    sampler = build_sampler(recipe, facts, network, trust)
    threshold = Threshold(str(score), recipe.get("fixed"))
    return Recogniser(sampler, facts, threshold, detectors)


def build_sampler(recipe: Recipe, facts: Facts, network: NetworkLike | None, trust: bool) -> Sampler:
    """The sampler of a recipe; see `build`."""
    kind = recipe.get("sampler")
    if kind == "ensemble":
        kept = recipe.get("members") or []
        if not isinstance(kept, list) or not all(isinstance(member, dict) for member in kept):
            raise UserError("the ensemble's members are no recipes; the checkpoint is damaged")
        members = [build_sampler(member, facts, network, trust) for member in kept]
        sampler: Sampler = Ensemble(members)
        sampler.recipe = {"sampler": kind, "members": [member.recipe for member in members]}
        return sampler
    if kind not in ("single", "mc_dropout"):
        raise UserError(f"there is no sampler {kind!r}; a newer version may have written this")
    chosen = network
    if network is None and (kept := recipe.get("network", default_network(kind))) is not None:
        chosen = saved_recipe(kept)
    if chosen is None:
        raise UserError(
            "its network was made in Python, which a checkpoint cannot name: pass it again, "
            "as in load(path, network=MyNet)"
        )
    built = split(build_network(chosen, facts, trust=trust), facts.input_shape, facts.num_classes)
    own = {"sampler": kind, "network": saved_recipe(chosen)}
    if kind == "single":
        sampler = Single(built)
    else:
        options = {name: recipe.get(name, default) for name, default in _MC_DROPOUT.items()}
        samples, masks, seed = options.values()
        if not isinstance(samples, int) or not isinstance(seed, int) or masks not in get_args(MaskKind):
            raise UserError(f"{samples!r} samples with {masks!r} masks of seed {seed!r} cannot be drawn")
        rate = give_dropout(built, recipe.get("dropout"))
        sampler = MCDropout(built, facts.input_shape, samples, masks, seed)
        own |= options | {"dropout": rate}
    sampler.recipe = own | origin(recipe)
    return sampler


def default_network(kind: str) -> Recipe:
    """The network where none is named."""
    recipe = saved_recipe(MCDropoutCNN if kind == "mc_dropout" else BaselineCNN)
    assert recipe is not None
    return recipe
