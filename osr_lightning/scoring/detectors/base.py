"""What the fitted scores share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError

Buffers: TypeAlias = dict[str, Tensor]


DETECTORS: dict[str, type[Detector]] = {}


class Detector(nn.Module):
    """What the fitted scores share.

    A subclass says its ``name``, under which it is then known everywhere, names its buffers in ``state``, and
    implements ``_fit`` and ``_score``.
    """

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]]
    _device: Tensor

    def __init_subclass__(cls) -> None:
        """Enter the subclass into ``DETECTORS``."""
        super().__init_subclass__()
        DETECTORS[cls.name] = cls

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


def squared_distance(points: Tensor, centers: Tensor) -> Tensor:
    """``(B, D)`` and ``(K, D)`` -> ``(B, K)``, without the cancellation of a matrix product."""
    distance: Tensor = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square()
