"""What the fitted scores share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import LOGITS, PENULTIMATE, LogitSampler

Buffers: TypeAlias = dict[str, Tensor]
Activations: TypeAlias = Mapping[str, Tensor]
LOG_PROBABILITY = "log_probability"


DETECTORS: dict[str, type[Detector]] = {}


class Known(NamedTuple):
    """What a score is fitted to.

    Attributes:
        score: its name.
        seen: of ``N`` training images.
        labels: ``(N,)`` in ``0 .. K-1``.
        last_layer: what makes logits of features, if the network has one; see `layer`.
        held_out: the same as ``seen`` of other known images; of the scores that take them.
    """

    score: str
    seen: Activations
    labels: Tensor
    last_layer: nn.Linear | None
    held_out: Activations | None

    @property
    def layer(self) -> nn.Linear:
        """The last layer, for scores that need it."""
        if self.last_layer is None:
            raise UserError(
                f"The score {self.score} needs a linear last layer, as of a linear classifier, and there is "
                "none; take another score."
            )
        return self.last_layer


class Detector(nn.Module):
    """What the fitted scores share.

    A subclass says its ``name``, under which it is then known everywhere, names its buffers in ``state``, and
    implements ``_fit`` and ``_score``. What it sees of ``B`` images is a mapping: ``log_probability``
    ``(B, K)``, the log of the mean over samples of the softmax, and each of its ``layers`` ``(B, ...)``, in
    the names of `osr_lightning.models.sampling.Sampled`.

    Attributes:
        layers: what to ask of the sampler.
        held_out: whether a fit takes known images that were not trained on as well.
        fits_probability: whether a fit looks at ``log_probability`` of the training images, whose ``N x K``
            numbers are many where there are many classes; scores and held-out images always have it.
    """

    name: ClassVar[str]
    state: ClassVar[tuple[str, ...]]
    held_out: ClassVar[bool] = False
    fits_probability: ClassVar[bool] = True
    layers: tuple[str, ...] = (PENULTIMATE, LOGITS)
    _device: Tensor

    def __init_subclass__(cls) -> None:
        """Enter the subclass into ``DETECTORS``, if it has a name of its own."""
        super().__init_subclass__()
        if "name" in vars(cls):
            DETECTORS[cls.name] = cls

    def __init__(self) -> None:
        super().__init__()
        # tells where buffers belong before there are any
        self.register_buffer("_device", torch.zeros(()), persistent=False)
        for name in self.state:
            self.register_buffer(name, None)
        self.register_load_state_dict_pre_hook(_take_shapes)  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, sampler: LogitSampler) -> Detector:
        """One for the layers that this sampler has."""
        return cls()

    @property
    def fitted(self) -> bool:
        """Whether there is something to score with."""
        return all(getattr(self, name) is not None for name in self.state)

    def fit(
        self,
        seen: Activations,
        labels: Tensor,
        last_layer: nn.Linear | None = None,
        held_out: Activations | None = None,
        classes: int | None = None,
    ) -> None:
        """Fit to training images, forgetting any earlier fit.

        Args:
            seen: of ``N`` training images, any floating type and device.
            labels: ``(N,)``; those outside ``0 .. K-1`` are left out, and not every class has to occur.
            last_layer: what makes logits of features; residual, vim, fdbd and nci need it.
            held_out: the same as ``seen`` of known images that were not trained on, for the scores that
                take them.
            classes: ``K``; that of ``log_probability`` if not given.

        Raises:
            UserError: if no image is known, or a value is not finite.
        """
        # buffers made in inference mode could not be changed outside it
        with torch.inference_mode(False), torch.no_grad():
            known = (labels >= 0) & (labels < (classes or seen[LOG_PROBABILITY].shape[1]))
            if not known.any():
                raise UserError(f"The score {self.name} needs training images of known classes, got none.")
            training = self._finite({name: seen[name][known] for name in self._asked if name in seen})
            if self.held_out:
                if held_out is None or not len(held_out[LOG_PROBABILITY]):
                    raise UserError(f"The score {self.name} needs held-out known images, got none.")
                held_out = self._finite(held_out)
            fitted_to = Known(self.name, training, labels[known], last_layer, held_out)
            for name, value in self._fit(fitted_to).items():
                setattr(self, name, value.to(self._device.device))

    def forget(self) -> None:
        """Be as before any fit."""
        for name in self.state:
            setattr(self, name, None)

    def forward(self, seen: Activations) -> Tensor:
        """What is seen of ``B`` images -> score ``(B,)`` float64.

        Raises:
            UserError: if this is not fitted.
        """
        if not self.fitted:
            raise UserError(f"The score {self.name} is not fitted to training images; run calibrate or run.")
        return self._score({name: seen[name].double() for name in self._asked})

    @property
    def _asked(self) -> tuple[str, ...]:
        return (*self.layers, LOG_PROBABILITY)

    def _finite(self, seen: Activations) -> Activations:
        double = {name: seen[name].double() for name in self._asked if name in seen}
        if not all(value.isfinite().all() for value in double.values()):
            raise UserError(f"The score {self.name} needs finite features and logits; train again.")
        return double

    def statistics(self, seen: Activations) -> Tensor:
        """What is compared with held-out images, ``(R, B)`` float64; of the scores that take them."""
        raise NotImplementedError

    def refer(self, statistics: Tensor) -> None:
        """Compare with these `statistics` of held-out images from now on.

        They may be of several fits, each of which left out the images that it is asked about.

        Args:
            statistics: ``(R, n)``.
        """
        raise NotImplementedError

    def _fit(self, known: Known) -> Buffers:
        raise NotImplementedError

    def _score(self, seen: Activations) -> Tensor:
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
    if torch.compiler.is_compiling():  # ONNX has no such operator
        return (points[:, None] - centers).square().sum(-1)
    distance: Tensor = torch.cdist(points, centers, compute_mode="donot_use_mm_for_euclid_dist")
    return distance.square()
