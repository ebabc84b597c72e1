"""Loading what answers: a checkpoint, or a graph that ``osr export`` wrote."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osr_lightning.deploy.hub import download, is_hub
from osr_lightning.errors import UserError

if TYPE_CHECKING:
    import torch

    from osr_lightning.deploy.onnx_runtime import ExportedRecogniser
    from osr_lightning.models.factory import NetworkLike
    from osr_lightning.recogniser.recogniser import Recogniser


def load(
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    network: NetworkLike | None = None,
    device: str | torch.device = "cpu",
) -> Recogniser | ExportedRecogniser:
    """Load what a training or ``osr export`` wrote; the file is all that it takes.

    Args:
        path: of a checkpoint, or of an ``.onnx`` file, which onnxruntime runs without torch; ``~`` is the
            home folder, and ``hf:USER/NAME`` a repository of the Hugging Face Hub.
        trust: whether a checkpoint may name code to import beside this package's own.
        network: the network, where it was made in Python and a checkpoint cannot name it.
        device: where to put a checkpoint's recogniser, as torch calls it, or ``auto``; graphs run on the CPU.

    Returns:
        It, ready to be asked with ``predict``.

    Raises:
        UserError: if the file is missing, damaged, or of another project, or needs trust or a network; or
            where there is no such device.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"load takes the path of a checkpoint or an .onnx file, not {type(path).__name__}")
    path = download(os.fspath(path)) if is_hub(path) else os.path.expanduser(path)
    if is_exported(path):
        if str(device) not in ("auto", "cpu"):
            raise UserError(f"the device {str(device)!r}: an exported graph runs on the CPU; leave it out")
        from osr_lightning.deploy.onnx_runtime import ExportedRecogniser

        return ExportedRecogniser(path)
    from osr_lightning.recogniser import checkpoint

    return checkpoint.load(path, trust=trust, network=network, device=device)


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether the name is that of an exported graph."""
    return os.fspath(path).lower().endswith(".onnx")
