"""Weights as a callback that prunes them takes them."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning

from osr_lightning.errors import UserError


class PlainLayout(Callback):
    """Has a network that is pruned keep its weights as torch's pruning views them, as one row.

    Those of a convolution otherwise lie channels last, which is quicker.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lay them out before the callback keeps a copy of them.

        Raises:
            UserError: where rows are to be pruned of what has none.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks if stage == "fit" else ():
            if isinstance(callback, ModelPruning):
                _refuse_vectors(callback, pl_module)
                pl_module.to(memory_format=torch.contiguous_format)


def _refuse_vectors(callback: ModelPruning, module: LightningModule) -> None:
    if not str(callback._pruning_method_name).endswith("_structured") or callback._parameters_to_prune:
        return
    for name in callback._parameter_names:
        found = [getattr(part, name, None) for part in module.modules()]
        if any(isinstance(one, torch.nn.Parameter) and one.dim() < 2 for one in found):
            raise UserError(
                f"ModelPruning with {callback._pruning_method_name} prunes whole rows, and a {name} of this "
                "network has none: name others with trainer.callbacks.parameter_names, as [weight], or "
                "prune by l1_unstructured"
            )
