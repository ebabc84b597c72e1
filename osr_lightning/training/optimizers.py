"""The study's optimizer and its two learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from osr_lightning.errors import UserError

Schedule: TypeAlias = Literal["step", "one_cycle"]


def configure(
    module: LightningModule, learning_rate: float, weight_decay: float, schedule: Schedule
) -> OptimizerLRScheduler:
    """Adam, or AdamW where weights decay (Loshchilov & Hutter, ICLR 2019).

    ``step`` halves the rate every 10 epochs, ``one_cycle`` (Smith & Topin 2019) ends near 0.

    Raises:
        UserError: where one_cycle does not know its end.
    """
    kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
    optimizer = kind(module.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    if schedule == "step":
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)]
    steps = module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise UserError("model.schedule one_cycle must know its end: set trainer.max_epochs or max_steps")
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}


def refuse_to_stretch(trainer: Trainer) -> None:
    """Stop where a resumed one-cycle schedule ends before the training.

    Raises:
        UserError: with the step at which it ends.
    """
    for config in trainer.lr_scheduler_configs:
        planned = getattr(config.scheduler, "total_steps", math.inf)
        if planned < trainer.estimated_stepping_batches:
            raise UserError(
                f"the checkpoint's one_cycle schedule ends at step {planned}, before trainer.max_epochs; "
                "resume with the epochs it was planned for, or train anew"
            )
