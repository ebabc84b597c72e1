"""What the server asks of a recogniser; torch is loaded for a checkpoint's alone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from osr_lightning.deploy.onnx_runtime import ExportedRecogniser
from osr_lightning.deploy.serve.backend import Backend, Explanation, Pixels
from osr_lightning.errors import UserError

if TYPE_CHECKING:
    from osr_lightning.recogniser.recogniser import Recogniser


def open_backend(recogniser: Recogniser | ExportedRecogniser) -> Backend:
    """What is to be served of a recogniser that is decided by its score and threshold already.

    Raises:
        UserError: where masks are drawn anew, so that the same image would not get the same answer again.
    """
    if isinstance(recogniser, ExportedRecogniser):
        graph = recogniser
        return Backend(
            graph, lambda pixels, _: Explanation(graph.answer(pixels).probabilities[0], None, None), None
        )
    from osr_lightning.models.mc_dropout import draws_anew

    if draws_anew(recogniser):
        raise UserError(
            "new dropout masks are drawn for every image, so that an answer would depend on what was asked "
            "before: train with --model.masks shared to serve the checkpoint"
        )
    return Backend(recogniser, partial(explain, recogniser), recogniser.sampler.num_samples)


def explain(recogniser: Recogniser, pixels: Pixels, with_map: bool) -> Explanation:
    """More about one image, ``(1, C, H, W)``; a map takes several times as long."""
    import torch

    from osr_lightning.models.modes import evaluating

    with torch.inference_mode():
        why = recogniser.explain_pixels(pixels[0], with_map=with_map)
        if recogniser.sampler.num_samples == 1:
            return Explanation(why.probabilities, None, why)
        with evaluating(recogniser):
            image = torch.from_numpy(pixels).to(next(recogniser.parameters()).device)
            logits = recogniser.sampler(recogniser.standardise(image)).logits[:, 0]
        return Explanation(why.probabilities, logits.double().softmax(-1).cpu().numpy(), why)
