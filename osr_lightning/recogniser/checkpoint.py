"""A recogniser's checkpoint: recipe, data spec, weights, thresholds. It is data: nothing in it runs.

The layout is that of Lightning, so a training's checkpoint and one written by `save` are the same to `load`::

    state_dict: {"recogniser.…": …}
    recogniser: {"version": 3, "recipe": {…}, "facts": {…}, "examples": {class: PNG in base64},
                 "known_images": {…} or None}
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch

from osr_lightning.atomic_write import refuse_folder, write_bytes
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import OnBackbone
from osr_lightning.models.dropout import MaskedDropout, give_dropout
from osr_lightning.models.ensemble import Ensemble, share_body
from osr_lightning.models.factory import NetworkLike, Recipe, build_network, origin, saved_recipe
from osr_lightning.models.mc_dropout import MaskKind, MCDropout
from osr_lightning.models.modes import evaluating
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN
from osr_lightning.models.sampling import LogitSampler, Single
from osr_lightning.models.split import split
from osr_lightning.recogniser import claims, examples, known_images
from osr_lightning.recogniser.device import choose
from osr_lightning.recogniser.migrate import VERSION, migrate
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.scoring.threshold import Threshold

PREFIX = "recogniser."
_MASKS = re.compile(r"(?:^|\.)masks(?:_\d+)?$")
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
        device: where to put it; see `osr_lightning.recogniser.device.choose`.

    Returns:
        It, ready to be asked (in eval mode).

    Raises:
        UserError: if the file is missing, damaged, or of another project, or needs trust or a network; or
            where there is no such device.
    """
    chosen = choose(device)
    checkpoint = read(path)
    with reading(path):
        kept = checkpoint["recogniser"]
        weights = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items()}
        spec = DataSpec.from_dict(kept["facts"])
        recogniser = build(kept["recipe"], spec, network=network, trust=trust, weights=weights)
        take_weights(recogniser, weights)
        recogniser.examples = examples.from_plain(kept.get("examples"), spec)
        recogniser.known_images = known_images.from_plain(kept.get("known_images"), spec)
        recogniser.eval()
    return recogniser.to(chosen)


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
    """Write a checkpoint that `load` reads, at once or not at all.

    Args:
        recogniser: of a checkpoint or a training.
        path: of the file.

    Raises:
        UserError: for what is no recogniser of torch, as an exported graph, or no path, or that of a folder.
        Failure: where the file cannot be written, as on a full disk.
    """
    if not isinstance(recogniser, Recogniser):
        raise UserError(
            "save writes a recogniser, as load('best.ckpt') and model.trained are, not "
            f"{type(recogniser).__name__}; an exported graph is a file that can be copied"
        )
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"save takes the path of a file, not {type(path).__name__}")
    refuse_folder(path)
    state = {PREFIX + name: value for name, value in recogniser.state_dict().items()}
    write({"state_dict": state, "recogniser": content(recogniser)}, path, follow=True)


def content(recogniser: Recogniser) -> dict[str, Any]:
    """What stands under ``recogniser`` in a checkpoint, beside the weights."""
    recipe = {
        **recogniser.sampler.recipe,
        "score": recogniser.threshold.score,
        "fixed": recogniser.threshold.fixed,
        "detectors": list(recogniser.detectors),
    }
    return {
        "version": VERSION,
        "recipe": recipe,
        "facts": recogniser.spec.to_dict(),
        "examples": examples.to_plain(recogniser.examples),
        "known_images": known_images.to_plain(recogniser.known_images),
    }


def write(checkpoint: Mapping[str, Any], path: str | os.PathLike[str], *, follow: bool = False) -> None:
    """Write a checkpoint at once or not at all.

    Args:
        checkpoint: its content.
        path: of the file.
        follow: see `osr_lightning.atomic_write.replacing`.

    Raises:
        Failure: see `osr_lightning.atomic_write.replacing`.
    """
    # torch's writer tells of a full disk in words of its own: it only writes to memory
    content = io.BytesIO()
    torch.save(dict(checkpoint), content)
    write_bytes(path, content, follow=follow)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of this version or of 0.1, running nothing in it.

    Raises:
        UserError: if it is missing, damaged, or of another project.
    """
    ending = os.path.splitext(path)[1].lower()
    if ending == ".pt2":
        raise UserError(
            f"{path} is a program, which no command runs (torch.export.load does): give the checkpoint that "
            "it was made of, or an .onnx file of osr export"
        )
    if ending == ".onnx":
        raise UserError(f"{path} is an exported graph: give the checkpoint that it was made of")
    claims.refuse_packed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol, which is not ours
            checkpoint = torch.load(os.path.expanduser(path), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no checkpoint {path}") from error
    except Exception as error:  # a damaged file can fail anywhere in torch's reader
        raise UserError(
            f"{path} is no readable checkpoint ({type(error).__name__}); train one with osr run"
        ) from error
    with reading(path):
        claims.refuse_tangled(checkpoint)
        checkpoint = migrate(checkpoint)
        claims.refuse_hollow(checkpoint["state_dict"])
        return checkpoint


def build(
    recipe: Recipe,
    spec: DataSpec,
    *,
    network: NetworkLike | None = None,
    trust: bool = False,
    weights: Mapping[str, Any] | None = None,
) -> Recogniser:
    """Build an untrained recogniser.

    Args:
        recipe: ``sampler`` (single, mc_dropout or ensemble), ``network`` (its recipe, or None), ``score``,
            ``detectors``; ``fixed``, a threshold given as a number; ``mirror``, whether mirror images are
            looked at too; of mc_dropout ``num_samples``, ``masks``, ``mask_seed`` and ``dropout``; of an
            ensemble ``members``, a list of recipes whose ``mirror`` counts for nothing, and ``shared_body``,
            whether all have one backbone, whose weights stand once in the file.
        spec: of the known images.
        network: goes before the recipe's.
        trust: see `load`.
        weights: of the checkpoint that the recipe is from, which may claim no more than they hold.

    Raises:
        UserError: where the recipe or the network is none.
    """
    score, detectors = recipe.get("score"), recipe.get("detectors") or []
    for name in (score, *detectors):
        if name not in SCORES and name not in DETECTORS:
            raise UserError(f"there is no score {name!r}; the scores are {', '.join([*SCORES, *DETECTORS])}")
    if weights is not None and network is None:
        claims.refuse_larger(recipe, spec, weights)
    sampler = build_sampler(recipe, spec, network, trust)
    if recipe.get("mirror"):
        _refuse_frozen(sampler)
        sampler.mirror, sampler.recipe["mirror"] = True, True
    threshold = Threshold(str(score), recipe.get("fixed"))
    return Recogniser(sampler, spec, threshold, detectors)


def _refuse_frozen(sampler: LogitSampler) -> None:
    for part in sampler.modules():
        if isinstance(part, OnBackbone) and not part.body.finetune:
            raise UserError(
                "model.mirror looks at mirror images, and a frozen backbone sees each image once: leave "
                "model.mirror out"
            )


def build_sampler(recipe: Recipe, spec: DataSpec, network: NetworkLike | None, trust: bool) -> LogitSampler:
    """The sampler of a recipe; see `build`."""
    kind = recipe.get("sampler")
    if kind == "ensemble":
        kept = recipe.get("members") or []
        if not isinstance(kept, list) or not all(isinstance(member, dict) for member in kept):
            raise UserError("the ensemble's members are no recipes; the checkpoint is damaged")
        shared, members = recipe.get("shared_body") is True, list[LogitSampler]()
        for one in kept:
            members.append(build_sampler(one, spec, network, trust))
            # at once: the file has weights of one backbone, and memory may have no room for all
            if shared and not share_body(members[0], members[-1]):
                raise UserError(
                    "the ensemble's members have no backbone in common; the checkpoint is damaged"
                )
        sampler: LogitSampler = Ensemble(members)
        sampler.recipe = {"sampler": kind, "members": [member.recipe for member in members]}
        sampler.recipe |= {"shared_body": True} if shared else {}
        return sampler
    if kind not in ("single", "mc_dropout"):
        raise UserError(f"there is no sampler {kind!r}; a newer version may have written this")
    chosen, default = network, MCDropoutCNN if kind == "mc_dropout" else BaselineCNN
    if network is None and (own_network := recipe.get("network", default)) is not None:
        chosen = saved_recipe(own_network)
    if chosen is None:
        raise UserError(
            "its network was made in Python, which a checkpoint cannot name: pass it again, "
            "as in load(path, network=MyNet)"
        )
    built = split(build_network(chosen, spec, trust=trust), spec.input_shape, spec.num_classes)
    own = {"sampler": kind, "network": saved_recipe(chosen)}
    if kind == "single":
        sampler = Single(built)
    else:
        options = {name: recipe.get(name, default) for name, default in _MC_DROPOUT.items()}
        samples, masks, seed = options.values()
        if not isinstance(samples, int) or not isinstance(seed, int) or masks not in get_args(MaskKind):
            raise UserError(f"{samples!r} samples with {masks!r} masks of seed {seed!r} cannot be drawn")
        rate = give_dropout(built, recipe.get("dropout"))
        sampler = MCDropout(built, spec.input_shape, samples, masks, seed)
        own |= options | {"dropout": rate}
    sampler.recipe = own | origin(recipe)
    return sampler


def take_weights(recogniser: Recogniser, weights: dict[str, Any]) -> None:
    """Load a saved state dict, which becomes this recogniser's in place, and ask about one black image.

    Detectors take whatever fit is there, or none. Masks of another seed or number stay as they were drawn.
    The image shows what does not fit together, as a detector and its features.

    Raises:
        UserError: where the weights are not those of this network, or damaged.
    """
    _fit_to(recogniser, weights)
    image = torch.zeros(1, *recogniser.spec.input_shape, dtype=torch.uint8)
    try:
        recogniser.load_state_dict(weights)
        for name, record in recogniser.threshold.records.items():
            if len(record.class_shifts) not in (0, recogniser.spec.num_classes):
                raise UserError(
                    f"the score {name} has thresholds of {len(record.class_shifts)} classes, and there are "
                    f"{recogniser.spec.num_classes}; the checkpoint is damaged: run osr calibrate"
                )
        with evaluating(recogniser), torch.inference_mode():
            recogniser.describe(image.to(next(recogniser.parameters()).device))
    except UserError:
        raise
    except Exception as error:  # values of any type may stand anywhere in a stranger's file
        detail = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint's weights are damaged ({type(error).__name__}: {detail}); train again"
        ) from error
    recogniser.sampler.restart()


def mask_names(recogniser: Recogniser) -> set[str]:
    """The entries of its state dict that hold dropout masks, which a seed determines."""
    return {
        f"{prefix}.{name}"
        for prefix, module in recogniser.named_modules()
        if isinstance(module, (MCDropout, MaskedDropout))
        for name, _ in module.named_buffers(recurse=False)
    }


def _fit_to(recogniser: Recogniser, weights: dict[str, Any]) -> None:
    """Make a state dict of one that was saved, in place: without what this recogniser does not have."""
    own, masks = recogniser.state_dict(), mask_names(recogniser)
    if odd := [name for name in weights if not isinstance(name, str)]:
        raise UserError(f"a weight is named {odd[0]!r}, which is no text; the checkpoint is damaged")
    if "threshold._extra_state" not in weights:
        raise UserError("the checkpoint has no calibration records; it is damaged, or was written by half")
    for name in list(weights):
        foreign = name.startswith("detectors.") and name.split(".")[1] not in recogniser.detectors
        # masks that are drawn for each image are not kept
        if foreign or (_MASKS.search(name) and name not in own):
            del weights[name]
    for name, value in own.items():
        if name.startswith("detectors.") or not isinstance(value, torch.Tensor):
            continue
        found = weights.get(name)
        same = isinstance(found, torch.Tensor) and found.shape == value.shape
        if name in masks and not same:
            weights[name] = value
            continue
        if not same:
            what = f"has shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else "is missing"
            raise UserError(
                f"{name} {what} in the checkpoint, but has shape {tuple(value.shape)} in the model; "
                "leave --config and --model out to build the checkpoint's own model"
            )
    if strangers := [n for n in weights if n not in own and not n.startswith("detectors.")]:
        raise UserError(f"the checkpoint has {strangers[0]}, which the model lacks; give it its own network")
