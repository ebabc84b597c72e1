"""Fisher's combination of what every layer finds unusual."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone
from osr_lightning.models.sampling import PENULTIMATE, LogitSampler, pooled_name
from osr_lightning.scoring.detectors.base import LOG_PROBABILITY, Activations, Buffers, Detector, Known
from osr_lightning.scoring.detectors.surprise import surprise, tail_slopes
from osr_lightning.scoring.scores import generalized_entropy

_OWN = 2**22  # values of all classes' covariances, at most: 32 MB
_ROWS = 8  # images of one class that are worked on together
_SHORT = 1e-12  # the shortest length
_BLOCK = 256  # of a triangular matrix that is inverted whole
_FEW = 2  # images fewer than one in so many of the widths are few: a smaller decomposition serves


class Fisher(Detector):
    """``-sum_i w_i log p_i`` in nats, above 0: how rarely known images look so odd, to layers and logits.

    ``p_i`` is the share of held-out known images whose statistic ``i`` is as large. The statistics are
    `osr_lightning.scoring.scores.generalized_entropy`, and for each layer the squared Mahalanobis distance
    ``(x - m_k)' C_k^-1 (x - m_k)`` to the class ``k`` that is predicted, where ``x = (f / |f|, log |f|)``: as
    unusual as a direction is a length, and networks answer unknown images with short features.
    Fisher, Statistical Methods for Research Workers, 1925, section 21.1; Haroush et al., A Statistical
    Framework for Efficient Out of Distribution Detection in Deep Neural Networks, ICLR 2022, who take class
    and layer statistics of means and maxima; Lee et al., NeurIPS 2018, for Gaussians on several layers.

    ``-log p`` is interpolated between the ``n`` references. Beyond the largest it grows from ``log(n + 1)``
    in proportion, as the tail of an exponential distribution whose mean is that of the largest tenth's
    excess; below the smallest it falls towards 0.

    ``C_k`` is the class's own covariance, pulled to the one that classes share as by ``D`` images of that,
    and the shared one to a multiple of the identity in the same way: few images of a class leave it what all
    classes have in common. A class without training images has their common mean. Where the covariances of
    all classes would be more than 32 MB, all have the shared one.

    What a layer gives of an image's style (see `osr_lightning.models.backbones.Body`) stands in ``x`` as it
    is, in units in which it varies among training images as the parts of a direction do on average, by
    ``1 / sqrt(D)``: near classes share their style, and what is no photograph does not.

    Args:
        layers: names for the sampler (see `osr_lightning.models.sampling.Sampled`) of layers of shape
            ``(B, D)``; none at all leaves generalized_entropy alone.
        weights: of generalized_entropy and each layer; all 1 if not given.
        styles: how many of each layer's values, the last ones, are an image's style; 0 if not given.
    """

    name = "fisher"
    state = ("means", "whitening", "references", "slopes")
    held_out = True
    fits_probability = False
    means: Tensor  # (L, K, D), of L layers, filled up with zeros to the widest
    whitening: Tensor  # (L, K, D, D), times its own transpose it is C_k^-1; (L, 1, D, D) where all share it
    references: Tensor  # (1 + L, n), sorted
    slopes: Tensor  # (1 + L,), of -log p beyond the largest

    def __init__(
        self,
        layers: Sequence[str] = (PENULTIMATE,),
        weights: Sequence[float] | None = None,
        styles: Sequence[int] | None = None,
    ) -> None:
        given = tuple(map(float, weights if weights is not None else (1,) * (1 + len(layers))))
        if len(given) != 1 + len(layers) or not all(0 <= weight < math.inf for weight in given):
            raise UserError(f"weights must be {1 + len(layers)} numbers from 0 on, got {list(given)}.")
        super().__init__()
        self.layers = tuple(layers)
        self.weights = given
        self._styles = tuple(styles if styles is not None else (0,) * len(layers))

    @classmethod
    def of(cls, sampler: LogitSampler) -> Fisher:
        """The first block, averaged over a coarse grid, and the penultimate layer: what there is of them.

        A network without named blocks has only that, and one that does not end in an ``nn.Linear`` neither.
        What lies between says little more: of MNIST's digits, its ``-log p`` is correlated by 0.7 or more
        with each of the others', theirs by 0.5 to 0.75. Of an ensemble, the mean over its members counts.
        Of a backbone's features, which tell near classes apart less than its logits do, these count twice.
        """
        layers: list[str] = []
        styles: list[int] = []
        weights = [2.0 if any(isinstance(part, Backbone) for part in sampler.modules()) else 1.0]
        networks = sampler.layers_by_network
        for network in networks:
            own = [(pooled_name(name), 0) for name in network.blocks[:1]]
            own += [] if network.last is None else [(network.last, network.style)]
            layers += [name for name, _ in own]
            styles += [style for _, style in own]
            weights += [1 / len(networks)] * len(own)
        return cls(layers, weights, styles)

    def _fit(self, known: Known) -> Buffers:
        assert known.held_out is not None
        classes = known.held_out[LOG_PROBABILITY].shape[1]
        inputs = self._inputs(known.seen)
        width = max((x.shape[1] for x in inputs), default=0)
        shared = classes * width**2 > _OWN
        fits = [
            _in_units(_units(x, style), known.labels, classes, x, shared)
            for x, style in zip(inputs, self._styles, strict=True)
        ]
        means = known.labels.new_zeros(0, classes, width, dtype=torch.float64)
        whitening = means.new_zeros(0, 1 if shared else classes, width, width)
        if fits:
            means = torch.stack([_widen(m, width) for m, _ in fits])
            whitening = torch.stack([_widen(_widen(w, width).mT, width).mT for _, w in fits])
        references = self._statistics(known.held_out, means, whitening).sort(dim=1).values
        return {
            "means": means,
            "whitening": whitening,
            "references": references,
            "slopes": tail_slopes(references),
        }

    def _score(self, seen: Activations) -> Tensor:
        statistics = self.statistics(seen)
        weights = statistics.new_tensor(self.weights).unsqueeze(1)
        score: Tensor = (weights * self.surprises(statistics)).sum(0)
        return score

    def surprises(self, statistics: Tensor) -> Tensor:
        """``-log p_i`` of `statistics` ``(1 + L, B)``, of which the score is the weighted sum."""
        return surprise(statistics, self.references, self.slopes)

    def statistics(self, seen: Activations) -> Tensor:
        """``(1 + L, B)`` float64: generalized_entropy, and each layer's distance to the predicted class."""
        double = {name: seen[name].double() for name in self._asked}
        return self._statistics(double, self.means, self.whitening)

    def refer(self, statistics: Tensor) -> None:
        """Compare with these statistics ``(1 + L, n)`` of held-out images from now on."""
        self.references = statistics.sort(dim=1).values
        self.slopes = tail_slopes(self.references)

    def _statistics(self, seen: Activations, means: Tensor, whitening: Tensor) -> Tensor:
        """``(1 + L, B)``: generalized_entropy, and each layer's distance to the predicted class."""
        logits = seen[LOG_PROBABILITY]
        entropy = generalized_entropy(logits.unsqueeze(0)).unsqueeze(0)
        if not self.layers:
            return entropy
        return torch.cat([entropy, _distances(self._inputs(seen), logits.argmax(1), means, whitening)])

    def _inputs(self, seen: Activations) -> list[Tensor]:
        """``x`` of each layer, ``(B, D + 1 + S)``."""
        found = []
        for name, style in zip(self.layers, self._styles, strict=True):
            features = seen[name]
            width = features.shape[1] - style
            x = direction_and_length(features[:, :width])
            found.append(torch.cat([x, features[:, width:]], dim=1) if style else x)
        return found


def direction_and_length(features: Tensor) -> Tensor:
    """``(B, D)`` -> ``(B, D + 1)``: at unit length, and the logarithm of the length."""
    length = features.norm(dim=1, keepdim=True).clamp(min=_SHORT)
    return torch.cat([features / length, length.log()], dim=1)


def _units(x: Tensor, style: int) -> Tensor:
    """What to divide the parts of ``x`` ``(N, D)`` by, of which the last ``style`` are one; ``(D,)``."""
    units = x.new_ones(x.shape[1])
    if style:
        deviation = x[:, -style:].std(0, correction=0)
        # what does not vary at all has no unit
        units[-style:] = torch.where(deviation > 0, deviation, 1.0) * (x.shape[1] - style) ** 0.5
    return units


def _in_units(units: Tensor, labels: Tensor, classes: int, x: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """`gaussians` of ``x`` in these units ``(D,)``, for ``x`` as it is."""
    means, whitening = gaussians(x / units, labels, classes, shared)
    return means * units, whitening / units[:, None]


def gaussians(x: Tensor, labels: Tensor, classes: int, shared: bool) -> tuple[Tensor, Tensor]:
    """Means ``(K, D)`` and whitening matrices ``(K, D, D)``, or ``(1, D, D)`` of the shared covariance.

    Args:
        x: ``(N, D)`` float64.
        labels: ``(N,)`` in ``0 .. K-1``.
        classes: ``K``.
        shared: whether all classes have the covariance that they share.
    """
    width = x.shape[1]
    counts = torch.bincount(labels, minlength=classes).to(x)
    sums = x.new_zeros(classes, width).index_add(0, labels, x)
    means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], x.mean(0))
    centered = x - means[labels]
    # where nothing varies at all, every direction counts the same
    variance = float(centered.square().sum()) / width / len(x) or 1.0
    spread = width * variance / (len(x) + width)
    if _FEW * len(x) < width:
        root = _InverseRoot.of(centered / (len(x) + width) ** 0.5, spread)
        every, times, times_its_transpose = root.matrix(), root.times, root.times
    else:
        common = centered.T @ centered / (len(x) + width) + spread * torch.eye(width).to(x)
        every = _whitening(common)
        times, times_its_transpose = partial(_times, every), partial(_times, every.mT)
    if shared:
        return means, every.unsqueeze(0)
    found = []
    for label, count in enumerate(counts.tolist()):
        own = centered[labels == label]
        if _FEW * len(own) < width:  # (own' own + D C) / (n + D) = C' (I + z' z) C', up to a factor
            narrow = _InverseRoot.of(times(own) / width**0.5, 1.0)
            below = times_its_transpose(narrow.rows).mT @ (narrow.gains[:, None] * narrow.rows)
            found.append(((count + width) / width) ** 0.5 * (narrow.scale * every + below))
        else:
            found.append(_whitening((own.T @ own + width * common) / (count + width)))
    return means, torch.stack(found)


def _times(matrix: Tensor, rows: Tensor) -> Tensor:
    return rows @ matrix


def _whitening(covariance: Tensor) -> Tensor:
    return _inverse(torch.linalg.cholesky(covariance)).mT


def _inverse(lower: Tensor) -> Tensor:
    """Of a lower triangular matrix, by halves: half of the time of solving for the identity."""
    width = len(lower)
    if width <= _BLOCK:
        identity = torch.eye(width).to(lower)
        return cast(Tensor, torch.linalg.solve_triangular(lower, identity, upper=False))
    half = width // 2
    first, last = _inverse(lower[:half, :half]), _inverse(lower[half:, half:])
    found = torch.zeros_like(lower)
    found[:half, :half], found[half:, half:] = first, last
    found[half:, :half] = -last @ (lower[half:, :half] @ first)
    return found


class _InverseRoot(NamedTuple):
    """``(a I + Z' Z)^(-1/2) = I / sqrt(a) + B' diag(g) B`` of few rows ``Z`` ``(n, D)``.

    It takes ``O(n D^2)``, where a decomposition of the ``(D, D)`` matrix takes ``O(D^3)``.

    Attributes:
        scale: ``1 / sqrt(a)``.
        rows: ``B`` ``(n, D)``, the principal directions of the rows, of their own lengths.
        gains: ``g`` ``(n,)``, below 0.
    """

    scale: float
    rows: Tensor
    gains: Tensor

    @classmethod
    def of(cls, rows: Tensor, added: float) -> _InverseRoot:
        """Of ``Z`` and ``a > 0``."""
        squares, directions = torch.linalg.eigh(rows @ rows.T)
        root, least = (added + squares.clamp(min=0)).sqrt(), added**0.5
        # (1 / root - 1 / least) / squares, also where these are 0
        return cls(1 / least, directions.T @ rows, -1 / (least * root * (least + root)))

    def times(self, rows: Tensor) -> Tensor:
        """``X`` ``(m, D)`` -> ``X (a I + Z' Z)^(-1/2)``, which is symmetric."""
        return self.scale * rows + (rows @ self.rows.T) * self.gains @ self.rows

    def matrix(self) -> Tensor:
        """It ``(D, D)``."""
        found = self.rows.T @ (self.gains[:, None] * self.rows)
        found.diagonal().add_(self.scale)
        return found


def _widen(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1]))


def _distances(inputs: Sequence[Tensor], classes: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    """``|W_k' (x - m_k)|^2`` of layers ``(B, up to D)`` to the classes ``(B,)``; ``(L, B)``.

    Each class's images are filled up to whole tiles, so that no product has a single row: those have kernels
    of their own, and an image's distance should not depend on how many others share its class.
    """
    if torch.compiler.is_compiling():
        layers = zip(inputs, means, whitening, strict=True)
        return torch.stack([_class_by_class(x, classes, mean, white) for x, mean, white in layers])
    order = classes.argsort(stable=True)
    counts = torch.bincount(classes, minlength=means.shape[1])
    filled = (counts + _ROWS - 1) // _ROWS * _ROWS
    # an image's row once filled up: where its class begins, and how many of it come before
    shift = (filled.cumsum(0) - filled) - (counts.cumsum(0) - counts)
    place = torch.arange(len(classes), device=classes.device) + shift[classes[order]]
    sizes = filled.tolist()
    x = means.new_zeros(len(inputs), sum(sizes), means.shape[2])
    for layer, one in enumerate(inputs):
        x[layer, place, : one.shape[1]] = one[order]
    parts = []
    for label, own in enumerate(torch.split(x, sizes, dim=1)):  # (L, n, D)
        if own.shape[1]:
            white = whitening[:, min(label, whitening.shape[1] - 1)]
            parts.append(torch.bmm(own - means[:, label, None], white).square().sum(-1))
    distances = means.new_empty(len(inputs), len(classes))
    if parts:
        distances[:, order] = torch.cat(parts, dim=1)[:, place]
    return distances


def _class_by_class(x: Tensor, classes: Tensor, means: Tensor, whitening: Tensor) -> Tensor:
    """The same distances of one layer, in operators that ONNX has; ``(B,)``.

    Args:
        x: ``(B, up to D)``.
        classes: ``(B,)``.
        means: ``(K, D)``.
        whitening: ``(K or 1, D, D)``.
    """
    centered = _widen(x, means.shape[1]) - means[classes]
    if len(whitening) == 1:
        return (centered @ whitening[0]).square().sum(1)
    distances = torch.zeros_like(centered[:, 0])
    for label, white in enumerate(whitening):
        (own,) = torch.nonzero(classes == label, as_tuple=True)
        distances = distances.index_put((own,), (centered[own] @ white).square().sum(1))
    return distances
