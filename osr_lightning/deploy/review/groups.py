"""Unknown images -> groups that look alike, by the features of a network that has not learned them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from osr_lightning.scoring.sweep import Floats

NONE = -1  # the group of images that lie alone
FEWEST = 3  # images of a group
# chosen on known classes, taken for unknown; benchmarks/review.py measures on others
_NEIGHBOURS = 10
_RESOLUTION = 0.3  # of communities: with less there are fewer
_AT_ONCE = 1000  # images that make the groups, at most: of more there would be more


class Groups(NamedTuple):
    """Which of ``N`` images belong together.

    Attributes:
        labels: ``(N,)`` int64, the number of an image's group in ``0 .. G-1``; `NONE` where it lies alone.
        coherence: ``(G,)`` in [-1, 1], the mean cosine of two images of a group.
        typical: ``(N,)`` in [-1, 1], the cosine of an image and the mean of its group; 0 where there is none.
    """

    labels: NDArray[np.int64]
    coherence: Floats
    typical: Floats


def group(features: Sequence[NDArray[np.float32]] | NDArray[np.float32]) -> Groups:
    """Group images by the directions of their features, the greatest coherence times size first.

    A graph tells how many groups there are, and k-means finds so many. In the graph images are neighbours if
    one is among the 10 nearest of the other by cosine; what connects them weighs as much as they have
    neighbours in common (Jaccard). Its communities are those with the most modularity at resolution 0.3
    (Blondel et al., Fast unfolding of communities in large networks, 2008; for such graphs Levine et al.,
    PhenoGraph, Cell 2015). Of more than 1,000 images, so many drawn at random make the groups, which the
    others join. Communities and groups of fewer than 3 images are none.

    Args:
        features: ``(N, D)``, of any length: what the last linear layer sees.

    Returns:
        The groups; those of images in another order may differ a little.
    """
    vectors = _unit(np.asarray(features, np.float64))
    found = _split(vectors)
    numbers, sizes = np.unique(found[found >= 0], return_counts=True)
    each = [
        (number, _coherence(vectors[found == number]), size)
        for number, size in zip(numbers, sizes, strict=True)
    ]
    each.sort(key=lambda one: -one[1] * one[2])
    labels = np.full(len(vectors), NONE, np.int64)
    typical = np.zeros(len(vectors))
    for place, (number, _, _) in enumerate(each):
        rows = found == number
        labels[rows] = place
        typical[rows] = vectors[rows] @ _unit(vectors[rows].mean(0))
    return Groups(labels, np.array([coherence for _, coherence, _ in each]), typical)


def _split(vectors: Floats) -> NDArray[np.int64]:
    """A number for each image's group, in no order."""
    from sklearn.cluster import KMeans

    drawn = vectors[np.sort(np.random.RandomState(0).permutation(len(vectors))[:_AT_ONCE])]
    number = int((np.bincount(_communities(drawn)) >= FEWEST).sum())
    if not number:
        return np.full(len(vectors), NONE)
    labels = KMeans(number, n_init=10, random_state=0).fit(drawn).predict(vectors)
    return np.where(np.bincount(labels)[labels] < FEWEST, NONE, labels)


def _communities(vectors: Floats) -> NDArray[np.int64]:
    import networkx

    count = len(vectors)
    near = np.zeros((count, count))
    number = min(_NEIGHBOURS + 1, count)  # each is near itself
    nearest = np.argpartition(-(vectors @ vectors.T), number - 1, axis=1)[:, :number]
    near[np.arange(count)[:, None], nearest] = 1
    common = near @ near.T
    weights = np.triu(
        np.where(near + near.T > 0, common / (near.sum(1)[:, None] + near.sum(1) - common), 0), 1
    )
    found = networkx.community.louvain_communities(
        networkx.from_numpy_array(weights), resolution=_RESOLUTION, seed=0
    )
    labels = np.empty(count, np.int64)
    for number, members in enumerate(found):
        labels[list(members)] = number
    return labels


def _coherence(vectors: Floats) -> float:
    count = len(vectors)
    return float((np.square(vectors.sum(0)).sum() - count) / (count * (count - 1)))


def _unit(vectors: Floats) -> Floats:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12))
