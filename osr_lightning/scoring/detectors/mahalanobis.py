"""Distances to class means."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Wrapped
from osr_lightning.models.sampling import PENULTIMATE, LogitSampler
from osr_lightning.scoring.detectors.base import Activations, Buffers, Detector, Known, squared_distance


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
        unit_length: whether features are brought to unit length first: Mueller and Hein, Mahalanobis++:
            Improving OOD Detection via Feature Normalization, ICML 2025.
    """

    name: ClassVar[str] = "mahalanobis"
    state: ClassVar[tuple[str, ...]] = ("means", "whitening")
    fits_probability = False
    means: Tensor  # (classes that occur, D), whitened
    whitening: Tensor  # (D, D), times its own transpose it is C^-1

    def __init__(self, ridge: float = 1e-6, unit_length: bool = False) -> None:
        if not ridge > 0:
            raise UserError(f"ridge must be above 0, got {ridge}.")
        super().__init__()
        self.ridge, self.unit_length = ridge, unit_length

    @classmethod
    def of(cls, sampler: LogitSampler) -> Mahalanobis:
        """At unit length for a classifier that is wrapped; a backbone's features have one length already."""
        return cls(unit_length=any(isinstance(part, Wrapped) for part in sampler.modules()))

    def _fit(self, known: Known) -> Buffers:
        features = self._features(known.seen)
        classes, index = torch.unique(known.labels, return_inverse=True)
        means = torch.stack([features[known.labels == k].mean(0) for k in classes])
        whitening = self._whiten(features - means[index])
        return {"means": means @ whitening, "whitening": whitening}

    def _score(self, seen: Activations) -> Tensor:
        return squared_distance(self._features(seen) @ self.whitening, self.means).amin(1)

    def _features(self, seen: Activations) -> Tensor:
        features = seen[PENULTIMATE]
        return F.normalize(features) if self.unit_length else features

    def _whiten(self, centered: Tensor) -> Tensor:
        variances, axes = torch.linalg.eigh(centered.T @ centered / len(centered))
        variances = variances.clamp(min=0)  # rounding
        # where nothing varies at all, every direction counts the same
        whitening: Tensor = axes / (variances + self.ridge * (float(variances.mean()) or 1.0)).sqrt()
        return whitening


class RelativeMahalanobis(Mahalanobis):
    """``min_k d_k(f) - d_0(f)``, any real number: `Mahalanobis` less what all training images share.

    ``d_k`` is the distance there, with its arguments; ``d_0`` is the squared distance to the mean of all
    training images under their own covariance, with the same ridge.
    Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, 2021.

    The two covariances differ by that of the class means alone. So the distances are the same in all
    directions but those of Fisher's discriminant, fewer than there are classes, and only these are looked at:
    elsewhere large numbers would be left to cancel, the largest where no training image varies.
    """

    name = "relative_mahalanobis"
    state = (*Mahalanobis.state, "mean", "total_whitening")
    whitening: Tensor  # (D, discriminants)
    mean: Tensor  # (1, discriminants), whitened
    total_whitening: Tensor  # (D, discriminants)

    def _fit(self, known: Known) -> Buffers:
        classes = super()._fit(known)
        means, whitening = classes["means"], classes["whitening"]
        counts = torch.unique(known.labels, return_counts=True)[1].to(means)
        mean = (counts @ means / counts.sum()).unsqueeze(0)
        between = (means - mean) * (counts / counts.sum()).sqrt().unsqueeze(1)
        _, deviations, axes = torch.linalg.svd(between, full_matrices=False)
        axes = axes[: max(1, len(means) - 1)].T
        shrunk = axes / (1 + deviations[: axes.shape[1]].square()).sqrt()
        return {
            "means": means @ axes,
            "whitening": whitening @ axes,
            "mean": mean @ shrunk,
            "total_whitening": whitening @ shrunk,
        }

    def _score(self, seen: Activations) -> Tensor:
        background = squared_distance(self._features(seen) @ self.total_whitening, self.mean)
        return super()._score(seen) - background.squeeze(1)
