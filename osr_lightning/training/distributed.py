"""Exact gathering of per-image results from several processes."""

from __future__ import annotations

import torch
from torch import Tensor

from osr_lightning.data.resumable_loader import place


def gather_rows(batches: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Bring the rows of all processes together, in data order, each image once.

    Args:
        batches: this process's batches; each a dict of ``(B, ...)`` tensors with the same keys, of
            which ``row`` holds the images' positions in the data set.
        device: where the process group communicates (the module's device).

    Returns:
        One dict of ``(N, ...)`` CPU tensors, the same on every process, sorted by ``row``.
    """
    from torchmetrics.utilities.distributed import gather_all_tensors

    table = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    if place()[1] > 1:
        # gathers shards of unequal length, unlike a bare all_gather
        table = {key: torch.cat(gather_all_tensors(value.to(device))) for key, value in table.items()}
    order = table["row"].argsort().cpu()
    table = {key: value.cpu()[order] for key, value in table.items()}
    # a sampler of the user's may pad shards with repeated images
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = table["row"][1:] != table["row"][:-1]
    return table if bool(first.all()) else {key: value[first] for key, value in table.items()}
