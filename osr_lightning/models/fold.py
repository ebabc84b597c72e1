"""What comes after the dropout, for all samples at about the price of one.

After a *channel* dropout the first linear layer is a sum over channels, ``W x = sum_c m_c (W_c x_c)``: the
products ``W_c x_c`` are worked out once per image, and every further sample is one row of a small matrix
product with the masks. The pass without dropout is one more row, of ones.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from osr_lightning.models.networks import SplitNetwork

# activations of a chunk, in elements: what stays in cache on a CPU, and 64 MB of float32 elsewhere
_CPU_CHUNK = 2**19
_GPU_CHUNK = 2**24


def is_foldable(network: SplitNetwork) -> bool:
    """Whether the dropout drops channels and the head begins with ``nn.Flatten`` and ``nn.Linear``."""
    head = network.head
    return (
        isinstance(network.dropout, (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d))
        and len(head) >= 2
        # exactly these: a subclass may compute something else
        and type(head[0]) is nn.Flatten
        and (head[0].start_dim, head[0].end_dim) == (1, -1)
        and type(head[1]) is nn.Linear
        and network.last != 1  # features are the input of the last
        and not mixes_images(head)
    )


def mixes_images(module: nn.Module) -> bool:
    """Whether a batch norm in training mode makes the result depend on which images run together."""
    return any(isinstance(m, nn.modules.batchnorm._NormBase) and m.training for m in module.modules())


def fold(head: nn.Sequential, features: Tensor, masks: Tensor) -> Tensor:
    """The first linear layer's output for every sample, folded.

    Args:
        head: as `is_foldable` wants it.
        features: ``(B, C, ...)``, before the dropout.
        masks: ``(1 or B, S, C)``.

    Returns:
        ``(B, S, hidden)``.
    """
    linear = cast(nn.Linear, head[1])
    batch, channels, hidden = features.shape[0], features.shape[1], linear.out_features
    length = linear.in_features // channels
    # (C, B, L); copied because bmm is up to ten times slower on the strides it has otherwise
    inputs = features.reshape(batch, channels, length).transpose(0, 1).contiguous()
    weight = linear.weight.view(hidden, channels, length).permute(1, 2, 0)  # (C, L, hidden)
    products = torch.bmm(inputs, weight).transpose(0, 1)  # (B, C, hidden)
    masks = masks.to(products).expand(batch, -1, -1)
    if linear.bias is None:
        return torch.bmm(masks, products)
    return torch.baddbmm(linear.bias.to(products), masks, products)


def chunk_size(features: Tensor, elements_each: int) -> int:
    """How many parts of ``elements_each`` activations to run at once."""
    budget = _CPU_CHUNK if features.device.type == "cpu" else _GPU_CHUNK
    return max(1, budget // max(1, elements_each))
