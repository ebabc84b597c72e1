"""Holding images out: at random, or by what is in them, so that copies stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def holdout(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices in two at random, in the same proportion within each class.

    From a class of ``n`` images ``fraction * n``, rounded, are held out: at least one if ``fraction``
    is not 0, and never all, so a class with a single image stays in the rest.

    Args:
        labels: ``(N,)`` int64.
        fraction: Share of each class to hold out, in ``[0, 1)``.
        seed: Seed of this split alone; the global random state is neither used nor changed.

    Returns:
        The indices of the rest and of the held-out images, each sorted.

    Raises:
        ValueError: ``fraction`` lies outside ``[0, 1)``.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction must lie in [0, 1), not {fraction}")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().flatten()
        count = min(len(members) - 1, max(int(fraction > 0), round(fraction * len(members))))
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def holdout_by_content(
    keys: Sequence[bytes], labels: Tensor, fraction: float, salt: str
) -> tuple[Tensor, Tensor]:
    """Split indices in two by a hash of each image's key, which nothing but the key and ``salt`` decides.

    Images of equal keys go to the same side, and an image that is added moves no other. The share that is
    held out is ``fraction`` on average. Only a class none of whose images would be held out gives up those of
    one key, if it has two; and every class keeps those of one.

    Args:
        keys: ``N`` digests of the images' contents.
        labels: ``(N,)`` int64.
        fraction: share to hold out, in ``[0, 1)``.
        salt: of the hash; another one is another split.

    Returns:
        The indices of the rest and of the held-out images, each sorted.
    """
    place = {key: _uniform(key, salt) for key in set(keys)}
    held = {key for key, value in place.items() if value < fraction}
    classes: list[list[bytes]] = []
    by_class: dict[int, set[bytes]] = {}
    for label, key in zip(labels.tolist(), keys, strict=True):
        by_class.setdefault(label, set()).add(key)
    for label in sorted(by_class) if fraction else ():
        own = sorted(by_class[label], key=place.__getitem__)
        if len(own) > 1 and held.isdisjoint(own):
            held.add(own[0])
        classes.append(own)
    for own in classes:  # last, as classes may share pictures
        if held.issuperset(own):
            held.discard(own[-1])
    mask = torch.tensor([key in held for key in keys], dtype=torch.bool)
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


def _uniform(key: bytes, salt: str) -> float:
    """A number in [0, 1) that looks random."""
    digest = hashlib.blake2b(key, digest_size=8, salt=hashlib.blake2b(salt.encode(), digest_size=8).digest())
    return int.from_bytes(digest.digest(), "big") / 2**64


def join_copies(keys: Sequence[bytes], pixels: Sequence[bytes]) -> list[bytes]:
    """One key for images of equal pixels: the smallest of theirs.

    A copy in another format that is added later may thus move its original.

    Args:
        keys: ``N`` digests of files.
        pixels: ``N`` digests of what was read from them.
    """
    smallest: dict[bytes, bytes] = {}
    for key, pixel in zip(keys, pixels, strict=True):
        smallest[pixel] = min(key, smallest.get(pixel, key))
    return [smallest[pixel] for pixel in pixels]


def copies(keys: Sequence[bytes], files: Sequence[str], labels: Sequence[int], most: int = 3) -> str:
    """A sentence on the images that occur more than once; empty where there are none.

    Args:
        keys: ``N`` digests, equal for copies.
        files: ``N`` names.
        labels: ``N`` classes; of a picture that has two, one is wrong.
        most: how many pairs to name.
    """
    first: dict[bytes, int] = {}
    pairs = [(first[key], row) for row, key in enumerate(keys) if first.setdefault(key, row) != row]
    if not pairs:
        return ""

    def named(some: Sequence[tuple[int, int]]) -> str:
        return ", ".join(f"{files[a]} = {files[b]}" for a, b in some[:most]) + ", …" * (len(some) > most)

    other = [(a, b) for a, b in pairs if labels[a] != labels[b]]
    if len(pairs) == 1:
        said, whose = "1 image is a copy of another and stays in the same part with it", "it is"
    else:
        said = f"{len(pairs):,} images are copies of others and stay in the same part with them"
        whose = f"{len(other):,} of them {'is' if len(other) == 1 else 'are'}"
    said = f"{said} ({named(pairs)})"
    return f"{said}; {whose} of another class ({named(other)}): remove what is wrong" if other else said
