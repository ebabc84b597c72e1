"""What a checkpoint keeps of the images whose features trained and calibrated its last layer."""

from __future__ import annotations

import torch

from osr_lightning.data.features import thumbnails_of
from osr_lightning.data.image_table import ImageTables
from osr_lightning.data.leaks import packed_digests
from osr_lightning.recogniser.known_images import KnownImages


def known_images_of(tables: ImageTables, weight_decay: float | None) -> KnownImages:
    """Training and then validation images, of which features are at hand; with the last layer's decay."""
    parts = tables.load_training()
    features = [part.features for part in parts if part.features is not None]
    sizes = torch.tensor([len(part) for part in parts])
    return KnownImages.of(
        torch.cat(features),
        torch.cat([part.labels for part in parts]),
        torch.repeat_interleave(torch.tensor([False, True]), sizes),
        torch.cat([packed_digests(part.images) for part in parts]),
        torch.cat([thumbnails_of(part.images, torch.arange(len(part))) for part in parts]),
        [name for part in parts for name in (part.files or ("",) * len(part))],
        weight_decay,
    )
