"""Opening what is to be served: a checkpoint, or an exported graph, for which torch is not loaded."""

from __future__ import annotations

from osr_lightning.deploy.load import check_exported_device, is_exported
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
    if is_exported(path):
        check_exported_device(device)
        from osr_lightning.deploy.onnx_runtime import ExportedRecogniser

        exported = ExportedRecogniser(path)
        exported.decide_by(score, threshold)
        rejected = None if threshold is not None else exported.threshold.record.rejected_known
        return Backend(
            exported,
            lambda pixels: Explanation(exported.answer(pixels).probabilities[0], None),
            None,
            rejected,
        )
    from osr_lightning.deploy.serve import explain as sampled
    from osr_lightning.recogniser import checkpoint

    recogniser = checkpoint.load(path, trust=trust, device=device)
    sampled.check_repeatable(recogniser, path)
    recogniser.decide_by(score, threshold)
    return Backend(
        recogniser,
        lambda pixels: sampled.explain(recogniser, pixels),
        recogniser.sampler.num_samples,
        recogniser.threshold.record.rejected_known,
    )
