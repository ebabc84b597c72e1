"""What only a checkpoint's recogniser tells: each sample's answer, and why. No other file here has torch."""

from __future__ import annotations

import torch

from osr_lightning.deploy.serve.backend import Explanation, Pixels
from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import draws_anew
from osr_lightning.models.modes import evaluating
from osr_lightning.recogniser.recogniser import Recogniser


def check_repeatable(recogniser: Recogniser, path: str) -> None:
    """Refuse answers that the same image would not get again.

    Raises:
        UserError: where masks are drawn anew.
    """
    if draws_anew(recogniser):
        raise UserError(
            f"{path} draws new dropout masks for every image, so that an answer would depend on what was "
            "asked before: train with --model.masks shared to serve it"
        )


@torch.inference_mode()
def explain(recogniser: Recogniser, pixels: Pixels, with_map: bool) -> Explanation:
    """More about one image, ``(1, C, H, W)``; a map takes several times as long."""
    why = recogniser.explain_pixels(pixels[0], with_map=with_map)
    if recogniser.sampler.num_samples == 1:
        return Explanation(why.probabilities, None, why)
    with evaluating(recogniser):
        image = torch.from_numpy(pixels).to(next(recogniser.parameters()).device)
        logits = recogniser.sampler(recogniser.standardise(image)).logits[:, 0]
    return Explanation(why.probabilities, logits.double().softmax(-1).cpu().numpy(), why)
