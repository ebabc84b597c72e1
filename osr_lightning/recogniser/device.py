"""Where to compute: the device that is asked for, or what there is."""

from __future__ import annotations

import os

import torch

from osr_lightning.errors import UserError


def choose(device: str | torch.device) -> torch.device:
    """The device of that name.

    Args:
        device: as torch calls it; ``auto`` is a CUDA device where there is one, that of this process where
            torchrun started several, and the CPU elsewhere.

    Raises:
        UserError: naming what there is, where this machine has no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        own = os.environ.get("LOCAL_RANK", "")
        device = f"cuda:{own}" if own.isdecimal() else "cuda"
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    except Exception as error:  # of a dozen kinds, by device
        raise UserError(
            f"there is no device {str(device)!r} here; there is {', '.join(_there_are())}"
        ) from error
    return chosen


def _there_are() -> list[str]:
    found = ["cpu"]
    if torch.accelerator.is_available() and (kind := torch.accelerator.current_accelerator()) is not None:
        found += [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())]
    return found
