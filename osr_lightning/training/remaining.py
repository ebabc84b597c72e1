"""What is still to be done of a command, in epochs and images."""

from __future__ import annotations

import math

from lightning.pytorch import Trainer

from osr_lightning.data.datamodule import OpenSetDataModule


def stages_of(trainer: Trainer) -> tuple[str, ...]:
    """What the command does after the training."""
    stages: tuple[str, ...] = getattr(trainer, "stages", ())
    return stages


def epochs_of(trainer: Trainer) -> int | None:
    """How many epochs the training will have; None where it knows no end."""
    ends = [trainer.max_epochs] if trainer.max_epochs not in (None, -1) else []
    steps = trainer.num_training_batches
    if trainer.max_steps != -1 and not math.isinf(steps):
        ends.append(math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / steps))
    return min((end for end in ends if end is not None), default=None)


def epochs_done(trainer: Trainer, batches: int) -> float:
    """How many epochs are over, with the share of this one that its batches are."""
    return trainer.current_epoch + batches / max(1, trainer.num_training_batches)


def images_of(trainer: Trainer, table: str) -> int:
    """How many images of a table are loaded; that of the test may wait for it."""
    datamodule = getattr(trainer, "datamodule", None)
    found = getattr(datamodule.tables, table) if isinstance(datamodule, OpenSetDataModule) else None
    return 0 if found is None else len(found)
