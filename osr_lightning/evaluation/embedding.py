"""Logits of many images -> points in the plane."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MIN_POINTS = 5  # fewer have no neighbourhoods to keep


def drawn_rows(source: NDArray[np.int64], most: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw images of a test to look at: no more unknown than known ones, and as many of each unknown set.

    Without known images the unknown ones are drawn alone. A set of fewer images leaves its share to others.

    Args:
        source: ``(N,)`` 0 for known images, above for those of each unknown set.
        most: images in all.
        seed: of the draw.

    Returns:
        ``(n,)`` rows, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(source))
    known, unknown = order[source[order] == 0], order[source[order] > 0]
    # an image's place within its own set: the first of every set, then the second of every set
    place = np.empty(len(unknown), np.int64)
    for index in np.unique(source[unknown]):
        mine = source[unknown] == index
        place[mine] = np.arange(mine.sum())
    unknown = unknown[np.argsort(place, kind="stable")]
    if len(known):
        unknown = unknown[: min(len(known), most // 2)]
    return np.sort(np.concatenate([known[: most - len(unknown)], unknown[:most]]))


def tsne_embedding(
    logits: NDArray[np.float32],
    seed: int = 0,
    max_points: int = 1000,
    source: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Place images in the plane so that neighbours by logits stay neighbours (t-SNE, van der Maaten 2008).

    Args:
        logits: ``(N, K)``.
        seed: of the subsample and of the embedding.
        max_points: images to draw at random if there are more; the time grows with them.
        source: ``(N,)`` where they are from, for `drawn_rows`; all known if not given.

    Returns:
        indices ``(n,)`` of the images, ascending, and their points ``(n, 2)``; ``n`` is 0 where there
        are fewer than five images or all logits are equal.
    """
    indices = drawn_rows(np.zeros(len(logits), np.int64) if source is None else source, max_points, seed)
    count, chosen = len(indices), logits[indices]
    if count < MIN_POINTS or not np.ptp(chosen, axis=0).any():
        return np.empty(0, np.int64), np.empty((0, 2), np.float32)
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    tsne = TSNE(
        # the default of 30 neighbours must stay below the number of images
        perplexity=min(30, (count - 1) / 3),
        init="pca" if logits.shape[1] > 1 else "random",
        random_state=seed,
        # 40% of the time of scikit-learn's defaults (1000, 0.5), with as many neighbours kept: of 2,000
        # digits and photo patches 97.05% instead of 97.15%
        max_iter=500,
        angle=0.8,
    )
    # On busy cores its threads wait for each other and take several times as long as one alone.
    with threadpool_limits(1):
        return indices.astype(np.int64), np.asarray(tsne.fit_transform(chosen), np.float32)
