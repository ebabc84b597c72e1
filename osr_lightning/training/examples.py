"""Choosing the pictures of known classes that a checkpoint keeps to be tried with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from osr_lightning.data.stream import Images
from osr_lightning.data_spec import DataSpec
from osr_lightning.recogniser.examples import MOST, Examples, small


def choose_examples(rows: Mapping[str, Tensor], images: Images, spec: DataSpec) -> Examples:
    """A typical image of each class, of evenly spaced ones where there are many.

    Of the images of a class that are classified rightly, it is that of the median loss; a class without any
    has none.

    Args:
        rows: per image ``row``, ``label``, ``predicted_class`` and ``nll``, ``(N,)`` each.
        images: of the rows.
        spec: of the known images.
    """
    order = rows["nll"].argsort(stable=True)
    right = order[(rows["predicted_class"] == rows["label"])[order]]
    labels = rows["label"][right]
    there = torch.unique(labels)
    if len(there) > MOST:
        there = there[torch.linspace(0, len(there) - 1, MOST).round().long()]
    chosen = {}
    for label in there.tolist():
        own = right[labels == label]
        middle = own[(len(own) - 1) // 2]
        chosen[spec.classes[label]] = small(images[rows["row"][middle].reshape(1)][0].numpy())
    return chosen
