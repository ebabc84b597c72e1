"""Unknown images made of known ones, to judge a ranking where no unknown images are at hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from osr_lightning.data.features import FeaturedImages, FeatureExtractor, featured
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.image_table import ImageTable
from osr_lightning.data.leaks import digest_of, pixel_digests
from osr_lightning.data.stream import Images
from osr_lightning.errors import UserError

MOST = 6000  # images, whatever the number of known ones
_GRID = 4  # patches a side
KINDS = ("mixed", "permuted", "shifted")


def generate(known: ImageTable, seed: int, extractor: FeatureExtractor | None = None) -> dict[str, ImageSet]:
    """Unknown images of three kinds, each made of another third of the known ones, drawn by seed.

    There are as many as known images, at most `MOST`. An image that came out as it was is left out.

    Args:
        known: known images, ``N`` of them.
        seed: of the draws; the same seed and images give the same unknown images.
        extractor: the backbone whose features of the known images are at hand. Those of images that were made
            before are kept as well, and no picture is read for them.

    Returns:
        Kind -> images.

    Raises:
        UserError: where none can be made of these images.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(known), generator=generator)[:MOST]
    partners = other_class(known.labels, generator)
    made: dict[str, ImageSet] = {}
    for kind, rows in zip(KINDS, chosen.tensor_split(len(KINDS)), strict=True):
        if kind == "mixed":
            rows = rows[partners[rows] >= 0]
        if extractor is not None and known.features is not None:
            featured_images = _featured(kind, known, rows, partners, seed, extractor)
            if len(featured_images):
                made[kind] = _as_set(featured_images, kind)
            continue
        images = others = known.images[rows]
        if kind == "mixed":
            others = known.images[partners[rows]]
            found = mixed(images, others)
        else:
            found = permuted(images, generator) if kind == "permuted" else shifted(images)
        found = found[_differ(found, images) & _differ(found, others)]
        if len(found):
            made[kind] = _as_set(found, kind)
    if not made:
        raise UserError(
            "no unknown images can be made of these known ones: name some with data.calibration_unknown"
        )
    return made


def _as_set(images: Images, kind: str) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (kind,))


def _featured(
    kind: str, known: ImageTable, rows: Tensor, partners: Tensor, seed: int, extractor: FeatureExtractor
) -> FeaturedImages:
    """Images of a kind with their features; each is made of pictures by itself, where these are not kept."""

    def make(place: int) -> Tensor:
        row = rows[place : place + 1]
        images = known.images[row]
        if kind == "mixed":
            both = (pixels.expand(2, -1, -1, -1) for pixels in (images, known.images[partners[row]]))
            return mixed(*both)[place % 2][None]
        if kind == "permuted":
            return permuted(images, torch.Generator().manual_seed(seed + place))
        return shifted(images)

    digests = pixel_digests(known.images)
    sources = [(digests[row], digests[partners[row]]) for row in rows.tolist()]
    keys = []
    for place, (own, partner) in enumerate(sources):
        number = {"mixed": place % 2, "permuted": seed + place, "shifted": 0}[kind]
        about = f"{kind} {number}".encode() + own + (partner if kind == "mixed" else b"")
        keys.append(digest_of(np.frombuffer(about, np.uint8)))
    found = featured(
        keys,
        range(len(keys)),
        lambda places: torch.cat([make(place) for place in places]),
        extractor,
        known.images.shape[1:],
    )
    made = zip(pixel_digests(found), sources, strict=True)
    other = [place for place, (own, of) in enumerate(made) if own not in of]
    return found.take(torch.tensor(other, dtype=torch.int64))


def mixed(images: Tensor, others: Tensor) -> Tensor:
    """Images ``x`` and others ``y``, both ``(B, C, H, W)`` uint8: half of them spliced, half averaged.

    Even rows are ``x`` left of the middle and ``y`` from there on, odd ones ``(x + y) // 2``.
    """
    middle = images.shape[3] // 2
    spliced = torch.cat([images[::2, :, :, :middle], others[::2, :, :, middle:]], dim=3)
    averaged = ((images[1::2].short() + others[1::2].short()) // 2).to(torch.uint8)
    made = torch.empty_like(images)
    made[::2], made[1::2] = spliced, averaged
    return made


def permuted(images: Tensor, generator: Generator) -> Tensor:
    """Images ``(B, C, H, W)`` cut in 4 x 4 patches (rows and columns that are left over stay).

    Each image's patches go round one random cycle through all 16 places, so that none stays at its place.
    """
    batch, channels, height, width = images.shape
    rows, columns = min(_GRID, height), min(_GRID, width)
    high, wide = height // rows, width // columns
    body = images[:, :, : rows * high, : columns * wide]
    patches = body.reshape(batch, channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
    patches = patches.flatten(1, 2)  # (B, rows * columns, C, high, wide)
    cycle = torch.rand(batch, rows * columns, generator=generator).argsort(1)
    source = torch.empty_like(cycle).scatter_(1, cycle, cycle.roll(1, dims=1))
    patches = patches[torch.arange(batch)[:, None], source]
    patches = patches.reshape(batch, rows, columns, channels, high, wide).permute(0, 3, 1, 4, 2, 5)
    made = images.clone()
    made[:, :, : rows * high, : columns * wide] = patches.reshape(body.shape)
    return made


def shifted(images: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` rolled by half of both sides: what was in the middle lies in the corners."""
    return images.roll((images.shape[2] // 2, images.shape[3] // 2), dims=(2, 3))


def _differ(images: Tensor, others: Tensor) -> Tensor:
    return (images != others).flatten(1).any(1)


def other_class(labels: Tensor, generator: Generator) -> Tensor:
    """For each label of ``(N,)`` the place of a random one that differs, -1 where all are the same."""
    order = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    others = (len(labels) - counts)[labels]  # how many differ
    after = counts.cumsum(0)[labels]  # in the order, the first beyond this label's own
    draw = (torch.rand(len(labels), generator=generator, dtype=torch.float64) * others).long()
    return torch.where(others > 0, order[(after + draw) % len(labels)], -1)
