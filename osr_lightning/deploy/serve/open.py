"""Opening what is to be served: a checkpoint, or an exported graph, for which torch is not loaded."""

from __future__ import annotations

from functools import partial

from osr_lightning.deploy.load import load
from osr_lightning.deploy.onnx_runtime import ExportedRecogniser
from osr_lightning.deploy.serve.backend import Backend, Explanation


def open_backend(
    path: str,
    *,
    score: str | None = None,
    threshold: float | None = None,
    trust: bool = False,
    device: str = "auto",
) -> Backend:
    """Load what is to be served.

    Args:
        path: of a checkpoint, or of an ``.onnx`` file, for which torch is not loaded.
        score: the score that decides; the file's if not given.
        threshold: above it an image is unknown; the calibrated one if not given.
        trust: whether a checkpoint may name code to import beside this package's own.
        device: where a checkpoint computes; ``auto`` is a GPU where there is one.

    Raises:
        UserError: where it cannot be loaded, has no threshold, or draws new masks for each image, or there is
            no such device.
    """
    recogniser = load(path, trust=trust, device=device)
    if isinstance(recogniser, ExportedRecogniser):
        recogniser.decide_by(score, threshold)
        graph = recogniser
        return Backend(
            graph, lambda pixels, _: Explanation(graph.answer(pixels).probabilities[0], None, None), None
        )
    from osr_lightning.deploy.serve.explain import check_repeatable, explain

    check_repeatable(recogniser, path)
    recogniser.decide_by(score, threshold)
    return Backend(recogniser, partial(explain, recogniser), recogniser.sampler.num_samples)
