"""The study's optimizer and its two learning-rate schedules, or those that the user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from osr_lightning.errors import UserError

Schedule: TypeAlias = Literal["step", "one_cycle"]
_SLOW = 0.1  # of the learning rate, for a backbone


def configure(
    module: LightningModule,
    learning_rate: float,
    weight_decay: float,
    schedule: Schedule,
    *,
    decoupled: bool = True,
    slow: Sequence[Tensor] = (),
) -> OptimizerLRScheduler:
    """Adam, or AdamW where weights decay (Loshchilov & Hutter, ICLR 2019), of the weights that learn.

    Without ``decoupled``, Adam minimises the loss and half of the squared weights times ``weight_decay``.
    ``step`` halves the rate every 10 epochs, ``one_cycle`` (Smith & Topin 2019) ends near 0. Weights in
    ``slow`` have a tenth of the rate.

    Raises:
        UserError: where one_cycle does not know its end.
    """
    kind = torch.optim.AdamW if weight_decay and decoupled else torch.optim.Adam
    apart = {id(weight) for weight in slow}
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if id(w) not in apart], "lr": learning_rate}
    ]
    if tuned := [weight for weight in weights if id(weight) in apart]:
        groups.append({"params": tuned, "lr": _SLOW * learning_rate})
    optimizer = kind(groups, weight_decay=weight_decay, fused=True)
    if schedule == "step":
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)]
    steps = module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise UserError("model.schedule one_cycle must know its end: set trainer.max_epochs or max_steps")
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=int(steps)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}


class OwnOptimizer(NamedTuple):
    """The optimizer of ``--optimizer`` and the schedule of ``--lr_scheduler``, as the parser gives them.

    Attributes:
        optimizer: its ``class_path`` and ``init_args``.
        scheduler: the same; None for a constant rate.
        combine: what Lightning wants of the two, as LightningCLI's ``configure_optimizers``.
    """

    optimizer: Any
    scheduler: Any | None
    combine: Callable[..., OptimizerLRScheduler]

    def configure(self, module: LightningModule) -> OptimizerLRScheduler:
        """Build both, now that the module has weights.

        Raises:
            UserError: where a class refuses its arguments.
        """
        optimizer = _build("optimizer", module.parameters(), self.optimizer)
        scheduler = None if self.scheduler is None else _build("lr_scheduler", optimizer, self.scheduler)
        return self.combine(module, optimizer, scheduler)

    def __str__(self) -> str:
        """Names, and the learning rate where there is one."""
        rate = self.optimizer["init_args"].get("lr")
        name = _name(self.optimizer) if rate is None else f"{_name(self.optimizer)} {rate:g}"
        return name if self.scheduler is None else f"{name}, {_name(self.scheduler)}"


def _name(init: Any) -> str:  # noqa: ANN401
    return str(init["class_path"]).rpartition(".")[2]


def _build(option: str, first: object, init: Any) -> Any:  # noqa: ANN401
    try:
        return instantiate_class(first, init)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"--{option} {_name(init)} refuses its options: {error}") from error


def refuse_to_stretch(trainer: Trainer) -> None:
    """Stop where a one-cycle schedule, resumed or of the user's own, ends before the training.

    Raises:
        UserError: with the step or epoch at which it ends.
    """
    for config in trainer.lr_scheduler_configs:
        planned, by_step = getattr(config.scheduler, "total_steps", math.inf), config.interval == "step"
        if planned < (trainer.estimated_stepping_batches if by_step else trainer.max_epochs or 0):
            raise UserError(
                f"the one_cycle schedule ends at {config.interval} {planned}, before trainer.max_epochs; "
                "resume with the epochs it was planned for, or train anew"
            )
