"""Out-of-fold scores: a frozen backbone's last layer and scores, fitted again without some known images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from osr_lightning.data.batch import Batch
from osr_lightning.models.backbones import Backbone
from osr_lightning.models.modes import evaluating
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.detectors import DETECTORS, LOG_PROBABILITY
from osr_lightning.training.calibration import fit_detectors
from osr_lightning.training.head import GRID, held_out_losses, solve

FOLDS = 5
FEW = 1000  # images: of more, what a fold less does to a fit is lost in chance
_AT_ONCE = 512  # images that are looked at together
T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F")
S = TypeVar("S")


class KnownFeatures(NamedTuple):
    """What a frozen backbone says of ``N`` known images.

    Attributes:
        features: ``(N, D)`` float32.
        labels: ``(N,)`` int64 in ``0 .. K-1``.
        folds: ``(N,)`` int64, the part that each image is in.
    """

    features: Tensor
    labels: Tensor
    folds: Tensor

    @property
    def num_folds(self) -> int:
        """How many parts there are."""
        return int(self.folds.max()) + 1

    @property
    def parts(self) -> list[Tensor]:
        """The images of each fold, ``(N,)`` bool."""
        return [self.folds == fold for fold in range(self.num_folds)]

    def where(self, mask: Tensor) -> KnownFeatures:
        """Those of ``mask`` ``(N,)``."""
        return KnownFeatures(*(part[mask] for part in self))


def deal_folds(keys: Sequence[bytes], labels: Tensor) -> Tensor:
    """Deal images into folds, those of each class evenly, copies into the same one.

    A hash decides, whatever the order of the images.

    Args:
        keys: ``N`` digests of the images' contents.
        labels: ``(N,)``.

    Returns:
        ``(N,)`` int64 in ``0 .. FOLDS - 1``.
    """
    fold: dict[bytes, int] = {}
    dealt = 0
    for _, key in sorted({*zip(labels.tolist(), keys, strict=True)}):
        if key not in fold:  # else it is a copy, of another class
            fold[key] = dealt % FOLDS
            dealt += 1
    return torch.tensor([fold[key] for key in keys], dtype=torch.int64)


def fit_all(
    recogniser: Recogniser,
    known: KnownFeatures,
    decay: float | None = None,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Fit last layer and scores to all images, and score each by a fit to the other folds.

    A fit to the other folds is made as that to all images is. In particular the references of scores that
    take held-out images are again out of fold: those of fold ``j`` come from a fit that saw neither ``j`` nor
    the fold that is scored. So an image's score is one that the recogniser would give a new image, had it
    been fitted to the other folds. Of a thousand images and more, they come from the fit that did not see
    ``j``, for a third of the fits.

    Args:
        recogniser: whose network is a frozen backbone; its mean of features, last layer and detectors change.
        known: the images.
        decay: of half the squared weights; chosen by the loss of images out of fold if not given.
        class_weights: ``(K,)`` in the loss; all 1 if not given.

    Returns:
        Per image what `Recogniser.describe` says out of fold, ``label``, ``row`` and ``nll``.
    """
    parts = known.parts
    if decay is None:
        decay = choose_decay(recogniser, known, parts, class_weights)
    work = copy_with(recogniser)
    takers = [name for name, one in work.every_detector.items() if one.held_out]
    one = known.where(parts[-1] & (parts[-1].cumsum(0) == 1))  # a passing reference

    def fit(without: tuple[int, ...]) -> Recogniser:
        """The recogniser itself to all, copies to fewer; of two folds only references are asked for."""
        fitted = copy_with(work) if without else recogniser
        if len(without) == 2:
            fitted.detectors = nn.ModuleDict({name: fitted.detectors[name] for name in takers})
        left = torch.isin(known.folds, known.folds.new_tensor(without))
        fit_part(fitted, known.where(~left), one, decay, class_weights)
        return fitted

    fits, _ = fit_without_each(
        known.num_folds,
        fit,
        lambda fitted, fold: _statistics(fitted, known.features[parts[fold]]),
        _refer,
        samples=len(known.labels) if takers else None,
        each=_at_once,
    )

    def describe(fold: int) -> dict[str, Tensor]:
        """A fold's rows, by the fit without it."""
        rows = parts[fold].nonzero().flatten()
        return {**describe_part(fits[fold], known.features[rows]), "row": rows}

    rows = _at_once(describe, range(known.num_folds))
    order = torch.cat([part["row"] for part in rows]).argsort()
    joined = {name: torch.cat([part[name] for part in rows])[order] for name in rows[0]}
    nll = -joined.pop(LOG_PROBABILITY).gather(1, known.labels.unsqueeze(1)).squeeze(1)
    return {**joined, "label": known.labels, "nll": nll}


def one_by_one(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """A function of each item, in their order."""
    return [work(item) for item in items]


def fit_without_each(
    folds: int,
    fit: Callable[[tuple[int, ...]], F],
    statistics: Callable[[F, int], S],
    refer: Callable[[F, Sequence[S]], None],
    *,
    samples: int | None,
    each: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] = one_by_one,
) -> tuple[list[F], F]:
    """Fits without each fold, and that to all, whose references are out of fold as well; see `fit_all`.

    Args:
        folds: how many there are.
        fit: to all samples but those of the folds given: of none, one or two.
        statistics: what a fit says of a fold, for the references of another fit.
        refer: takes such statistics of several folds as a fit's references.
        samples: how many there are; None where no score takes references.
        each: a function of each item.

    Returns:
        Those without fold ``0, 1, …``; and that to all.
    """
    inner: dict[tuple[int, int], S] = {}
    if samples is not None and samples < FEW and folds > 2:

        def without(pair: tuple[int, int]) -> list[S]:
            """What of two folds is said by the fit that saw neither."""
            fitted = fit(pair)
            return [statistics(fitted, fold) for fold in pair]

        pairs = list(combinations(range(folds), 2))
        for (first, second), (of_first, of_second) in zip(pairs, each(without, pairs), strict=True):
            inner[first, second], inner[second, first] = of_second, of_first
    *fits, whole = each(fit, [*((fold,) for fold in range(folds)), ()])
    if samples is not None:
        outer = each(lambda fold: statistics(fits[fold], fold), range(folds))
        for fold, fitted in enumerate(fits):
            others = [other for other in range(folds) if other != fold]
            refer(fitted, [inner[fold, other] if inner else outer[other] for other in others])
        refer(whole, outer)
    return fits, whole


def _at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """A function of each item, in threads that share the processors: a fit alone leaves most idle."""
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        return one_by_one(work, items)
    try:
        with ThreadPoolExecutor(workers, "fit", torch.set_num_threads, (threads // workers,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # those of the libraries below are the whole process's


def choose_decay(
    recogniser: Recogniser, known: KnownFeatures, parts: Sequence[Tensor], class_weights: Tensor | None
) -> float:
    """The weight decay under which fits without one of ``parts``, ``(N,)`` bool each, tell that best."""

    def losses(part: Tensor) -> Tensor:
        direction = copy.deepcopy(_network(recogniser).direction)
        rest = known.where(~part)
        direction.begin_at_mean(rest.features)
        width = len(direction.mean)
        train, held_out = (direction(each)[:, :width] for each in (rest.features, known.features[part]))
        found = held_out_losses(
            train, rest.labels, held_out, known.labels[part], recogniser.spec.num_classes, class_weights
        )
        return torch.tensor(found) * int(part.sum())

    return GRID[int(torch.stack(_at_once(losses, parts)).sum(0).argmin())]


@torch.no_grad()
def fit_part(
    recogniser: Recogniser,
    known: KnownFeatures,
    held_out: KnownFeatures,
    decay: float,
    class_weights: Tensor | None,
) -> None:
    """Fit mean, last layer and detectors to images, and take others as references."""
    network = _network(recogniser)
    network.direction.begin_at_mean(known.features)
    directions = network.last_input(known.features)
    last = recogniser.sampler.last_layer
    weight, bias = (torch.zeros_like(value).requires_grad_() for value in (last.weight, last.bias))
    solve(weight, bias, directions, known.labels, decay, class_weights)
    last.weight.copy_(weight)
    last.bias.copy_(bias)
    fit_detectors(recogniser, _batches(known), _batches(held_out))


@torch.no_grad()
def _statistics(recogniser: Recogniser, features: Tensor) -> dict[str, Tensor]:
    with evaluating(recogniser):
        seen = recogniser.look(features)
    return {name: one.statistics(seen) for name, one in recogniser.every_detector.items() if one.held_out}


def _refer(recogniser: Recogniser, statistics: Sequence[dict[str, Tensor]]) -> None:
    for name in statistics[0] if statistics else ():
        recogniser.every_detector[name].refer(torch.cat([one[name] for one in statistics], dim=1))


@torch.no_grad()
def describe_part(recogniser: Recogniser, features: Tensor) -> dict[str, Tensor]:
    """What `Recogniser.describe` says of images with these features, ``(n, D)`` float32."""
    with evaluating(recogniser):
        found = [recogniser.describe(part) for part in torch.split(features, _AT_ONCE)]
    return {name: torch.cat([one[name] for one in found]) for name in found[0]}


def _batches(known: KnownFeatures) -> list[Batch]:
    rows = torch.arange(len(known.labels))
    zeros = torch.zeros_like(rows)
    return [Batch(known.features[r], known.labels[r], zeros[r], r) for r in torch.split(rows, _AT_ONCE)]


def copy_with(recogniser: Recogniser, classes: Sequence[str] | None = None) -> Recogniser:
    """A recogniser that may be fitted to other images, with the same frozen backbone.

    Args:
        recogniser: to be copied.
        classes: names of those that its last layer tells apart; the same if not given.
    """
    body, known = _network(recogniser).body, recogniser.known_images
    copied = copy.deepcopy(recogniser, {id(body): body, id(known): known})
    copied.threshold.forget_shifts()  # scores are taken as they are
    if classes is not None:
        network, last = _network(copied), copied.sampler.last_layer
        copied.spec = copied.spec._replace(classes=tuple(classes))
        assert network.last is not None
        network.head[network.last] = nn.Linear(last.in_features, len(classes)).to(last.weight)
        score = copied.threshold.score
        copied.detectors = nn.ModuleDict()
        if score in DETECTORS:
            copied.detectors[score] = DETECTORS[score].of(copied.sampler).to(last.weight.device)
    return copied


def _network(recogniser: Recogniser) -> Backbone:
    network = recogniser.sampler.network
    assert isinstance(network, Backbone)
    return network
