"""A checkpoint's weights, into the recogniser that was built for them."""

from __future__ import annotations

from typing import Any

import torch

from osr_lightning.errors import UserError
from osr_lightning.models.dropout import MaskedDropout
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.models.modes import evaluating
from osr_lightning.recogniser import Recogniser


def take_weights(recogniser: Recogniser, weights: dict[str, Any]) -> None:
    """Load a saved state dict, which becomes this recogniser's in place, and ask about one black image.

    Detectors take whatever fit is there, or none. Masks of another seed or number stay as they were drawn.
    The image shows what does not fit together, as a detector and its features.

    Raises:
        UserError: where the weights are not those of this network, or damaged.
    """
    _fit_to(recogniser, weights)
    image = torch.zeros(1, *recogniser.facts.input_shape, dtype=torch.uint8)
    try:
        recogniser.load_state_dict(weights)
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
        if name.startswith("detectors.") and name.split(".")[1] not in recogniser.detectors:
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
