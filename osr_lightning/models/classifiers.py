"""The LightningModules: a deterministic baseline and the Monte-Carlo-dropout classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import MaskKind, sample_logits
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN
from osr_lightning.models.open_set import OpenSetClassifier


class BaselineClassifier(OpenSetClassifier):
    """A deterministic network; one pass is its only sample.

    Args:
        network: images ``(B, C, H, W)`` to logits ``(B, K)``; BaselineCNN with num_classes if not given.
        num_classes: number of known classes, K.
        kwargs: see :class:`OpenSetClassifier`.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        num_classes: int = 10,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(network or BaselineCNN(num_classes), num_classes, **kwargs)

    def sample_logits(self, images: Tensor) -> Tensor:
        """Logits ``(1, B, K)`` of the only pass."""
        logits: Tensor = self(images)
        return logits.unsqueeze(0)


class MCDropoutClassifier(OpenSetClassifier):
    """Monte-Carlo dropout (Gal & Ghahramani, ICML 2016): dropout stays on when predicting.

    Args:
        network: images ``(B, C, H, W)`` to logits ``(B, K)``; MCDropoutCNN with num_classes if not given.
        num_classes: number of known classes, K.
        num_samples: stochastic passes per image, S.
        masks: shared (one dropout mask per sample for all images: results do not depend on batches,
            order or number of processes) or independent (one per image and sample).
        mask_seed: seed of the dropout masks when predicting.
        kwargs: see :class:`OpenSetClassifier`.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        num_classes: int = 10,
        num_samples: int = 10,
        masks: MaskKind = "shared",
        mask_seed: int = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if num_samples < 1:
            raise UserError(f"model.num_samples must be at least 1, got {num_samples}")
        super().__init__(network or MCDropoutCNN(num_classes), num_classes, **kwargs)
        self.num_samples = num_samples
        self.masks: MaskKind = masks
        self.mask_seed = mask_seed
        self._generator = torch.Generator().manual_seed(mask_seed)

    def sample_logits(self, images: Tensor) -> Tensor:
        """Logits ``(S, B, K)`` of ``S = num_samples`` passes with dropout active."""
        if self.masks == "shared":
            self._generator.manual_seed(self.mask_seed)
        return sample_logits(
            self.network, images, self.num_samples, masks=self.masks, generator=self._generator
        )

    def _restart_masks(self) -> None:
        self._generator.manual_seed(self.mask_seed)

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _restart_masks
