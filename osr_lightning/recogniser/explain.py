"""Working out why: a score's parts, the nearest known images, and where in an image the unusual is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osr_lightning.data_spec import DataSpec
from osr_lightning.models.backbones import Backbone
from osr_lightning.models.ensemble import Ensemble, own_name
from osr_lightning.models.places import Places, windows
from osr_lightning.models.sampling import PENULTIMATE, LogitSampler, Sampled
from osr_lightning.recogniser.explanation import MAP_SIDE, Neighbour, Part, UnusualMap
from osr_lightning.recogniser.known_images import KnownImages
from osr_lightning.scoring.calibration import Calibration
from osr_lightning.scoring.detectors import Detector
from osr_lightning.scoring.detectors.fisher import Fisher
from osr_lightning.scoring.sweep import Floats

NEAREST = 5
_AT_ONCE = 4096  # known images that are compared together
_SHARES = (1 / 7, 2 / 7, 3 / 7, 4 / 7)  # of the grid's edge that a window takes
_MOST = 7  # windows along an edge
_USUAL = 16  # known images whose mean map is the usual one
_SAME = 1e-12  # of the largest score, or of 1: what is rounding
_POINTS: Floats = (np.arange(MAP_SIDE) + 0.5) / MAP_SIDE  # of a map along an edge, in shares of it
_STYLED = "distance of the features and the style from the class's"
_LAYERS = {PENULTIMATE: "distance of the features from the class's", "direction": _STYLED, "body": _STYLED}
_BY_CLASS = "class_threshold"
_OF_CLASS = "what the class's own threshold differs from the common one"
# what a score looks at, for a person
WORDS = {
    "msp": "probability of the other classes",
    "entropy": "uncertainty of the probabilities",
    "expected_entropy": "uncertainty of each sample's probabilities",
    "mutual_information": "disagreement of the samples",
    "variation_ratio": "samples that vote for another class",
    "max_logit": "smallness of the largest logit",
    "energy": "smallness of the logits together",
    "generalized_entropy": "uncertainty of the logits",
    "mahalanobis": "distance of the features from the nearest class's",
    "relative_mahalanobis": "distance of the features from the nearest class's, less that from all",
    "knn": "distance of the features from the nearest known images'",
    "vim": "features that no class explains, and the logits",
    "residual": "features outside of the directions that known ones vary in",
    "openmax": "distance of the logits from the class's",
    "fdbd": "nearness of the features to where the class would change",
    "nci": "features that do not point to the class",
}


def parts_of(
    name: str,
    detector: Detector | None,
    seen: Mapping[str, Tensor],
    score: float,
    record: Calibration,
    p: float | None,
    shift: float,
) -> tuple[Part, ...]:
    """The statistics of an image's score, and what is added to it for the image's class.

    Args:
        name: of the score.
        detector: whose it is; None for one of the logits alone.
        seen: what the detector sees of one image.
        score: of the image.
        record: the score's calibration.
        p: the image's p-value; None where there is none.
        shift: what the score has of the threshold of the image's class, see `Threshold.by_class`.
    """
    of_class = [Part(_BY_CLASS, _OF_CLASS, shift, None, 0, 1.0, shift)] if shift else []
    if not isinstance(detector, Fisher):
        own = score - shift
        return (Part(name, WORDS.get(name, name), own, p, record.count_known, 1.0, own), *of_class)
    statistics = detector.statistics(seen)
    surprises = detector.surprises(statistics)[:, 0].tolist()
    names = ("generalized_entropy", *detector.layers)
    count = detector.references.shape[1]
    parts = (
        Part(layer, _in_words(layer), value, float(np.exp(-surprise)), count, weight, weight * surprise)
        for layer, value, surprise, weight in zip(
            names, statistics[:, 0].tolist(), surprises, detector.weights, strict=True
        )
    )
    return (*parts, *of_class)


def _in_words(layer: str) -> str:
    if layer in WORDS:
        return WORDS[layer]
    own = own_name(layer)
    member = layer.removesuffix(own).rstrip(":")
    told = _LAYERS.get(own, f"distance of the early features ({own}) from the class's")
    return f"{told}, of member {int(member) + 1}" if member else told


def why_no_nearest(known: KnownImages | None, sampler: LogitSampler) -> str:
    """Why known images cannot be compared with; empty where they can."""
    if known is None:
        if isinstance(sampler, Ensemble):
            return "the checkpoint of an ensemble keeps no known images"
        return "the checkpoint keeps no known images, as that of a frozen backbone does (model.keep_features)"
    network = getattr(sampler, "network", None)
    if not isinstance(network, Backbone) or known.features.shape[1] != network.body.width:
        return "the known images that the checkpoint keeps are of another network"
    return "" if len(known) else "the checkpoint keeps no known images"


@torch.no_grad()
def nearest(
    known: KnownImages, sampler: LogitSampler, features: Tensor, classes: Sequence[str]
) -> tuple[Neighbour, ...]:
    """The known images whose features have the most similar directions.

    Args:
        known: at least one.
        sampler: of a `Backbone`, as `why_no_nearest` says.
        features: ``(1, D)``, what the last layer sees of the image.
        classes: names of the known ones.
    """
    network = sampler.network
    assert isinstance(network, Backbone)
    own = F.normalize(features.double())
    distances = []
    for some in torch.split(known.features, _AT_ONCE):
        directions = network.last_input(some.to(features.device, features.dtype)).double()
        distances.append(1 - (F.normalize(directions) @ own.T)[:, 0])
    found = torch.cat(distances).clamp(0, 2).topk(min(NEAREST, len(known)), largest=False)
    return tuple(
        Neighbour(classes[int(known.labels[row])], known.files[row], distance, known.thumbnails[row].numpy())
        for row, distance in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    )


def unusual_map(
    places: Places | None,
    image: Tensor,
    layers: Sequence[str],
    score: Callable[[Sampled], Tensor],
    usual: Sequence[Floats] = (),
) -> UnusualMap | str:
    """Where in an image the unusual is: the score of a window alone, less that of the image without it.

    Args:
        places: of the sampler's networks; None where they have none.
        image: ``(1, C, H, W)``, standardised.
        layers: that the score looks at.
        score: of what is sampled of ``V`` variants, ``(V,)``.
        usual: `usual_differences`, which are taken off: known images too are odder in some places than in
            others, as where they have a background; nothing is taken off if empty.

    Returns:
        It, or why there is none.
    """
    if places is None:
        return "no layer of the network has an output with places that the answer depends on"
    found = scored_windows(places, image, layers, score)
    differences = [one.difference for one in found]
    if usual:
        differences = [own - other for own, other in zip(differences, usual, strict=True)]
    if not all(
        np.isfinite(values).all() and values.std() > _SAME * max(1.0, np.abs(values).max())
        for values in differences
    ):
        return "the score is the same at all places"
    return draw(found, differences)


def some_of(known: KnownImages) -> KnownImages:
    """A few of the known images, held-out ones where there are any."""
    rows = known.held_out.nonzero()[:, 0] if known.held_out.any() else torch.arange(len(known))
    chosen = torch.zeros(len(known), dtype=torch.bool)
    chosen[rows[:: -(-len(rows) // _USUAL)]] = True
    return known.where(chosen)


def enlarged(thumbnails: Tensor, spec: DataSpec) -> Tensor:
    """Small pictures ``(N, 3, s, s)`` as pixels of the network's size and channels, uint8."""
    some = thumbnails[:, : spec.channels].float()
    large = F.interpolate(some, (spec.image_size,) * 2, mode="bicubic", align_corners=False)
    return large.round().clamp(0, 255).to(torch.uint8)


def usual_differences(found: Sequence[Sequence[Windows]]) -> list[Floats]:
    """The mean over images of each window's difference; ``(n, n)`` for each size."""
    return [np.mean([one.difference for one in images], axis=0) for images in zip(*found, strict=True)]


class Windows(NamedTuple):
    """Square windows of one size, ``n`` along an edge.

    Attributes:
        size: in places.
        side: places along an edge of the grid.
        middles: ``(n,)``, where they are along an edge, in shares of it.
        alone: ``(n, n)``, the score of the windows alone.
        without: ``(n, n)``, the score of the image without each.
    """

    size: int
    side: int
    middles: Floats
    alone: Floats
    without: Floats

    @property
    def difference(self) -> Floats:
        """The first less the second."""
        return self.alone - self.without


def scored_windows(
    places: Places, image: Tensor, layers: Sequence[str], score: Callable[[Sampled], Tensor]
) -> list[Windows]:
    """Windows of one to four sevenths of an edge of the grid on which the network last sees an image.

    Args:
        places: see `unusual_map`, as of the others.
        image: as there.
        layers: as there.
        score: as there.

    Returns:
        Those of each size, from small to large.
    """
    side = places.side
    sizes = sorted({max(1, round(share * side)) for share in _SHARES if round(share * side) < side})
    grids = [windows(side, size, _MOST) for size in sizes]
    masks = torch.cat([grid for grid, _ in grids])
    scores = score(places.sample(image, layers, torch.cat([masks, ~masks]))).double().cpu().numpy()
    ends = np.cumsum([len(grid) for grid, _ in grids])[:-1]
    parts = zip(*(np.split(half, ends) for half in np.split(scores, 2)), strict=True)
    return [
        Windows(
            size, side, (np.array(begins) + size / 2) / side, *(one.reshape(len(begins), -1) for one in both)
        )
        for size, (_, begins), both in zip(sizes, grids, parts, strict=True)
    ]


def draw(found: Sequence[Windows], values: Sequence[Floats]) -> UnusualMap:
    """A map of a value of each window.

    Values of each size are brought to mean 0 and standard deviation 1, for those of larger windows differ
    less; drawn at the windows' middles, and averaged. Beyond the middles of the outermost of the largest
    windows the map falls, by its standard deviation for each place: layers see zeros beyond the edge.

    Args:
        found: of each size.
        values: ``(n, n)`` for each, not all the same.
    """
    total = np.zeros((MAP_SIDE, MAP_SIDE))
    for one, own in zip(found, values, strict=True):
        total += _drawn((own - own.mean()) / own.std(), one.middles)
    total /= len(found)
    largest = found[-1]
    at = _POINTS * largest.side
    beyond = (largest.size / 2 - np.minimum(at, largest.side - at)).clip(min=0)
    total -= total.std() * (beyond[:, None] + beyond)
    return UnusualMap(total, largest.side)


def _drawn(values: Floats, at: Floats) -> Floats:
    """Values ``(n, n)`` at shares ``(n,)`` of the edges, at all points; beyond the outermost as at that."""
    rows = np.stack([np.interp(_POINTS, at, row) for row in values])
    return np.stack([np.interp(_POINTS, at, column) for column in rows.T], axis=1)
