"""Fitted scores: features ``(B, D)`` and logits ``(B, K)`` -> score ``(B,)``, higher is more unknown.

Features are what the network's last linear layer sees and logits what it returns, in one pass without
dropout (``osr_lightning.models.features``). Each score is a module whose whole state lies in buffers: it is
saved with the weights, moves with the module, and loads into a fresh one. All is worked out in float64.

A new fitted score is one subclass of `Detector` and its name in `DetectorName` and `DETECTORS`. In the
formulas ``f`` is the feature vector, ``z`` the logits, ``N`` the number of training images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osr_lightning.errors import UserError

DetectorName: TypeAlias = Literal["mahalanobis", "relative_mahalanobis", "knn", "vim", "openmax"]
Buffers: TypeAlias = dict[str, Tensor]

_CHUNK = 2**22  # distances that the nearest neighbours hold at once: 32 MB
_SHIFT = 10_000.0  # libMR's: OpenMax fits to distance - smallest + shift


class Detector(nn.Module):
    """What the fitted scores share; a subclass names its buffers and implements ``_fit`` and ``_score``."""

    name: ClassVar[DetectorName]
    state: ClassVar[tuple[str, ...]]
    _device: Tensor

    def __init__(self) -> None:
        super().__init__()
        # tells where buffers belong before there are any
        self.register_buffer("_device", torch.zeros(()), persistent=False)
        for name in self.state:
            self.register_buffer(name, None)
        self.register_load_state_dict_pre_hook(_take_shapes)  # type: ignore[no-untyped-call]

    @property
    def fitted(self) -> bool:
        """Whether there is something to score with."""
        return all(getattr(self, name) is not None for name in self.state)

    def fit(
        self, features: Tensor, logits: Tensor, labels: Tensor, last_layer: nn.Linear | None = None
    ) -> None:
        """Fit to training images, forgetting any earlier fit.

        Args:
            features: ``(N, D)``, any floating type and device.
            logits: ``(N, K)``.
            labels: ``(N,)``; those outside ``0 .. K-1`` are left out, and not every class has to occur.
            last_layer: what makes logits of features; only vim needs it.

        Raises:
            UserError: if no image is known, or a value is not finite.
        """
        # buffers made in inference mode could not be changed outside it
        with torch.inference_mode(False), torch.no_grad():
            known = (labels >= 0) & (labels < logits.shape[1])
            features, logits, labels = features[known].double(), logits[known].double(), labels[known]
            if not len(labels):
                raise UserError(f"The score {self.name} needs training images of known classes, got none.")
            if not (features.isfinite().all() and logits.isfinite().all()):
                raise UserError(f"The score {self.name} needs finite features and logits; train again.")
            for name, value in self._fit(features, logits, labels, last_layer).items():
                setattr(self, name, value.to(self._device.device))

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Features ``(B, D)`` and logits ``(B, K)`` -> score ``(B,)`` float64.

        Raises:
            UserError: if this is not fitted.
        """
        if not self.fitted:
            raise UserError(f"The score {self.name} is not fitted to training images; run calibrate or run.")
        return self._score(features.double(), logits.double())

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor, layer: nn.Linear | None) -> Buffers:
        raise NotImplementedError

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Detector:
        """Move buffers but keep their precision: half of it may do for weights, not for distances."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self


def _take_shapes(detector: Detector, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Before loading: a buffer for each tensor that comes, of its shape, and None where none does."""
    for name in detector.state:
        value = state_dict.get(prefix + name)
        empty = None if value is None else torch.empty_like(value, device=detector._device.device)
        setattr(detector, name, empty)


class Mahalanobis(Detector):
    """``min_k (f - m_k)' C^-1 (f - m_k)``, 0 or more: squared distance to the nearest class mean.

    ``m_k`` are the means of the classes that occur, ``C`` is the covariance that they share, over ``N``.
    Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018; without
    its input perturbation and its ensemble over layers.

    Deviation: ``ridge`` times the mean variance is added to the diagonal of ``C``. The authors' code takes
    the pseudo-inverse, to which a direction without training variance, such as a unit that no training image
    activates, counts nothing; here it counts most.

    Args:
        ridge: above 0.
        normalize: bring features to unit length first (Mueller and Hein, Mahalanobis++, ICML 2025), for
            networks that answer unknown images with short features.
    """

    name: ClassVar[DetectorName] = "mahalanobis"
    state: ClassVar[tuple[str, ...]] = ("means", "whitening")
    means: Tensor  # (classes that occur, D), whitened
    whitening: Tensor  # (D, D), times its own transpose it is C^-1

    def __init__(self, ridge: float = 1e-6, normalize: bool = False) -> None:
        if not ridge > 0:
            raise UserError(f"ridge must be above 0, got {ridge}.")
        super().__init__()
        self.ridge = ridge
        self.normalize = normalize

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor, layer: nn.Linear | None) -> Buffers:
        features = self._prepare(features)
        classes, index = torch.unique(labels, return_inverse=True)
        means = torch.stack([features[labels == k].mean(0) for k in classes])
        whitening = self._whiten(features - means[index])
        return {"means": means @ whitening, "whitening": whitening}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        return _squared_distance(self._prepare(features) @ self.whitening, self.means).amin(1)

    def _prepare(self, features: Tensor) -> Tensor:
        return F.normalize(features) if self.normalize else features

    def _whiten(self, centered: Tensor) -> Tensor:
        variances, axes = torch.linalg.eigh(centered.T @ centered / len(centered))
        variances = variances.clamp(min=0)  # rounding
        # where nothing varies at all, every direction counts the same
        whitening: Tensor = axes / (variances + self.ridge * (float(variances.mean()) or 1.0)).sqrt()
        return whitening


class RelativeMahalanobis(Mahalanobis):
    """``min_k d_k(f) - d_0(f)``, any real number: `Mahalanobis` less what all training images share.

    ``d_k`` is the distance there, with its arguments and its ridge; ``d_0`` is the squared distance to the
    mean of all training images under their own covariance.
    Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021.
    """

    name = "relative_mahalanobis"
    state = (*Mahalanobis.state, "mean", "total_whitening")
    mean: Tensor  # (1, D), whitened
    total_whitening: Tensor  # (D, D)

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor, layer: nn.Linear | None) -> Buffers:
        classes = super()._fit(features, logits, labels, layer)
        features = self._prepare(features)
        mean = features.mean(0, keepdim=True)
        whitening = self._whiten(features - mean)
        return classes | {"mean": mean @ whitening, "total_whitening": whitening}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        background = _squared_distance(self._prepare(features) @ self.total_whitening, self.mean)
        return super()._score(features, logits) - background.squeeze(1)


class KNN(Detector):
    """``||f - f_k||`` in [0, 2], both at unit length: distance to the ``k``-th nearest training features.

    Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022. The search is exact;
    with fewer than ``k`` training images, the furthest counts. Training features are kept in float32, which
    moves a distance by less than 1e-6.

    Args:
        k: the default is the paper's for 50,000 images; choose it smaller with a small ``max_points``.
        max_points: how many training images to keep, drawn at random; all of them if not given.
        seed: of that draw.
    """

    name = "knn"
    state = ("neighbours",)
    neighbours: Tensor  # (at most max_points, D) float32

    def __init__(self, k: int = 50, max_points: int | None = None, seed: int = 0) -> None:
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}.")
        if max_points is not None and max_points < 1:
            raise UserError(f"max_points must be at least 1, got {max_points}.")
        super().__init__()
        self.k, self.max_points, self.seed = k, max_points, seed

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor, layer: nn.Linear | None) -> Buffers:
        if self.max_points is not None and self.max_points < len(features):
            generator = torch.Generator().manual_seed(self.seed)
            drawn = torch.randperm(len(features), generator=generator)[: self.max_points]
            features = features[drawn.to(features.device)]
        return {"neighbours": F.normalize(features).float()}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        neighbours = self.neighbours.double()
        k, lengths = min(self.k, len(neighbours)), neighbours.square().sum(1)
        squares = []
        for chunk in torch.split(F.normalize(features), max(1, _CHUNK // len(neighbours))):
            # |a - b|^2 less |a|^2, which the ranking does not need
            nearest = torch.addmm(lengths, chunk, neighbours.T, alpha=-2).topk(k, largest=False).values
            squares.append(nearest[:, -1] + chunk.square().sum(1))
        return torch.cat(squares).clamp(min=0).sqrt()


class ViM(Detector):
    """``alpha ||R'(f - o)|| - log sum_k exp z_k``, any real number: a virtual logit against the real ones.

    ``o = -W^+ b`` is where the last layer's logits vanish, ``R`` the directions in which training features
    vary least about it, all but the first ``dimension``; ``alpha`` makes the mean virtual logit of training
    images equal the mean of their largest logits. The paper's score is the softmax probability of the
    virtual logit; this is its log-odds, which rank the same and do not tie.
    Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022.

    Deviation: the mean residual that ``alpha`` divides by is at least 1e-6 of the mean length of ``f - o``,
    for training features that leave none.

    Args:
        dimension: of the principal space; the authors' rule if not given: 1000 from ``D = 2048`` on, 512
            from 768 on, else ``D // 2``.
    """

    name = "vim"
    state = ("origin", "residual", "alpha")
    origin: Tensor  # (D,)
    residual: Tensor  # (D, D - dimension)
    alpha: Tensor  # ()

    def __init__(self, dimension: int | None = None) -> None:
        if dimension is not None and dimension < 0:
            raise UserError(f"dimension must be at least 0, got {dimension}.")
        super().__init__()
        self.dimension = dimension

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor, layer: nn.Linear | None) -> Buffers:
        if layer is None:
            raise UserError("The score vim needs the network's last linear layer; pass last_layer.")
        width = features.shape[1]
        dimension = self.dimension
        if dimension is None:
            dimension = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        if dimension >= width:
            raise UserError(f"dimension must be below the {width} features there are, got {dimension}.")
        origin = features.new_zeros(width)
        if layer.bias is not None:
            origin = -torch.linalg.pinv(layer.weight.to(features)) @ layer.bias.to(features)
        centered = features - origin
        axes = torch.linalg.eigh(centered.T @ centered).eigenvectors  # least variance first
        residual = axes[:, : width - dimension]
        floor = 1e-6 * centered.norm(dim=1).mean()
        length = (centered @ residual).norm(dim=1).mean().clamp(min=floor)
        return {"origin": origin, "residual": residual, "alpha": logits.amax(1).mean() / length}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        virtual: Tensor = self.alpha * ((features - self.origin) @ self.residual).norm(dim=1)
        return virtual - logits.logsumexp(1)


class OpenMax(Detector):
    """``v_0 - log sum_k exp v_k``, any real number: log-odds of the unknown class among revised activations.

    ``v_k = z_k (1 - a_k w_k)`` and ``v_0 = sum_k z_k a_k w_k``; ``a_k`` falls linearly from 1 for the largest
    logit to 0 after ``top`` of them, and ``w_k`` is a Weibull distribution's share below the distance from
    ``z`` to the mean of class ``k``. Means are over training logits classified correctly, and each
    distribution is fitted to the ``tail`` largest of their distances, by maximum likelihood after the shift
    of the authors' libMR. The paper's score is the probability; its log-odds rank the same and do not tie.
    Bendale and Boult, Towards Open Set Deep Networks, CVPR 2016.

    Deviations: distances are Euclidean, as in the paper's algorithms; the authors' code adds a cosine
    distance. ``a_k`` is that of the code. A class without correctly classified images has ``w_k = 1``.

    Args:
        tail: distances per class to fit to; all of a class that has fewer.
        top: how many of the largest logits to revise, at most K of them; the paper's alpha.
    """

    name = "openmax"
    state = ("means", "smallest", "shape", "scale")
    means: Tensor  # (K, K)
    smallest: Tensor  # (K,), the least distance of each tail
    shape: Tensor  # (K,), of the Weibull distributions
    scale: Tensor  # (K,)

    def __init__(self, tail: int = 20, top: int = 10) -> None:
        if tail < 2:
            raise UserError(f"tail must be at least 2, got {tail}.")
        if top < 1:
            raise UserError(f"top must be at least 1, got {top}.")
        super().__init__()
        self.tail, self.top = tail, top

    def _fit(self, features: Tensor, logits: Tensor, labels: Tensor, layer: nn.Linear | None) -> Buffers:
        classes = logits.shape[1]
        means = logits.new_zeros(classes, classes)
        # w_k = 1 at any distance, unless there is something to fit to
        smallest = logits.new_full((classes,), -math.inf)
        shape, scale = torch.ones_like(smallest), torch.ones_like(smallest)
        correct = logits.argmax(1) == labels
        for k in torch.unique(labels[correct]).tolist():
            activations = logits[correct & (labels == k)]
            means[k] = activations.mean(0)
            distances = (activations - means[k]).norm(dim=1)
            tail = distances.topk(min(self.tail, len(distances))).values
            smallest[k] = tail[-1]
            shape[k], scale[k] = fit_weibull(tail - tail[-1] + _SHIFT)
        return {"means": means, "smallest": smallest, "shape": shape, "scale": scale}

    def _score(self, features: Tensor, logits: Tensor) -> Tensor:
        distances = _squared_distance(logits, self.means).sqrt() - self.smallest + _SHIFT  # (B, K)
        hazard = ((distances.clamp(min=0) / self.scale).log() * self.shape).exp()
        rank = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0 is the largest
        weight: Tensor = (1 - rank.double() / min(self.top, logits.shape[1])).clamp(min=0)
        moved = logits * weight * -(-hazard).expm1()
        return moved.sum(1) - (logits - moved).logsumexp(1)


DETECTORS: dict[str, type[Detector]] = {
    detector.name: detector for detector in (Mahalanobis, RelativeMahalanobis, KNN, ViM, OpenMax)
}


def fit_weibull(values: Tensor) -> tuple[float, float]:
    """Shape and scale of the Weibull distribution that makes ``values (n,)``, above 0, likeliest.

    The shape ``c`` solves ``sum x^c log x / sum x^c - mean log x = 1/c``, whose left side grows with ``c``
    while the right one falls: halving an interval finds it. Equal values give its upper end, 1e12.
    """
    peak = float(values.max())
    logs = (values.cpu() / peak).log()
    low, high = math.log(1e-3), math.log(1e12)
    for _ in range(64):
        middle = (low + high) / 2
        powers = (math.exp(middle) * logs).exp()
        below = float((powers * logs).sum() / powers.sum() - logs.mean()) < math.exp(-middle)
        low, high = (middle, high) if below else (low, middle)
    return math.exp(middle), peak * float(powers.mean()) ** math.exp(-middle)


def _squared_distance(points: Tensor, centers: Tensor) -> Tensor:
    """``(B, D)`` and ``(K, D)`` -> ``(B, K)``, without the cancellation of a matrix product."""
    distance: Tensor = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square()
