"""What a checkpoint keeps of its known images: pictures to be tried with, and features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from osr_lightning.data.features import thumbnails_of
from osr_lightning.data.image_table import ImageTables
from osr_lightning.data.leaks import packed_digests
from osr_lightning.data.stream import Images
from osr_lightning.data_spec import DataSpec
from osr_lightning.recogniser.examples import MOST, Examples, small
from osr_lightning.recogniser.known_images import KnownImages, kept_features


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


def known_images_of(tables: ImageTables, weight_decay: float | None) -> KnownImages:
    """Training and then validation images, of which features are at hand; with the last layer's decay."""
    parts = tables.load_training()
    features = [part.features for part in parts if part.features is not None]
    sizes = torch.tensor([len(part) for part in parts])
    return KnownImages(
        kept_features(torch.cat(features)),
        torch.cat([part.labels for part in parts]),
        torch.repeat_interleave(torch.tensor([False, True]), sizes),
        torch.cat([packed_digests(part.images) for part in parts]),
        torch.cat([thumbnails_of(part.images, torch.arange(len(part))) for part in parts]),
        [name for part in parts for name in (part.files or ("",) * len(part))],
        weight_decay,
    )
