"""The study's optimizer and three learning-rate schedules, or those that the user names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from osr_lightning.errors import UserError

Schedule: TypeAlias = Literal["step", "one_cycle", "cosine"]
_SLOW = 0.1  # of the learning rate, for a backbone
_WARM_UP = 0.05  # of the steps


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
    Weights in ``slow`` have a tenth of the rate.

    Raises:
        UserError: see `scheduled`.
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
    return scheduled(module, optimizer, schedule)


def scheduled(
    module: LightningModule, optimizer: torch.optim.Optimizer, schedule: Schedule
) -> OptimizerLRScheduler:
    """An optimizer whose rates follow a schedule, of which they are the start or the peak.

    ``step`` halves them every 10 epochs. ``one_cycle`` (Smith & Topin, Super-Convergence, 2019) raises them
    over the first 30% of the steps and ends near 0. ``cosine`` raises them in a line over the first 5% of
    the steps (Goyal et al., Accurate, Large Minibatch SGD, 2017) and lowers them to 0 by half a cosine
    (Loshchilov & Hutter, SGDR, ICLR 2017).

    Raises:
        UserError: where a schedule by steps does not know its end.
    """
    schedulers = torch.optim.lr_scheduler
    if schedule == "step":
        return [optimizer], [schedulers.StepLR(optimizer, step_size=10, gamma=0.5)]
    steps = module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise UserError(f"model.schedule {schedule} must know its end: set trainer.max_epochs or max_steps")
    total = int(steps)
    rates = [group["lr"] for group in optimizer.param_groups]
    by_step: LRScheduler = (
        Cosine(optimizer, total)
        if schedule == "cosine"
        else schedulers.OneCycleLR(optimizer, rates, total_steps=total)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": by_step, "interval": "step"}}


class Cosine(LRScheduler):
    """Rates rise in a line to their peak over the first 5% of the steps, and fall to 0 by half a cosine.

    Args:
        optimizer: with the peak rates.
        total_steps: at which they are 0; kept with a checkpoint, as the curve's length is the training's.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total_steps: int) -> None:
        self.total_steps = total_steps
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the step that comes."""
        warm, step = math.ceil(_WARM_UP * self.total_steps), self.last_epoch
        if step < warm:
            share = (step + 1) / warm
        else:
            share = 0.5 * (1 + math.cos(math.pi * (step + 1 - warm) / (self.total_steps + 1 - warm)))
        return [share * rate for rate in self.base_lrs]


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

        Without a scheduler of its own, the optimizer follows ``model.schedule`` where that is given.

        Raises:
            UserError: where a class refuses its arguments.
        """
        optimizer = _build("optimizer", module.parameters(), self.optimizer)
        if self.scheduler is None and module.hparams.get("schedule") is not None:
            return scheduled(module, optimizer, module.hparams["schedule"])
        scheduler = None if self.scheduler is None else _build("lr_scheduler", optimizer, self.scheduler)
        return self.combine(module, optimizer, scheduler)

    def told(self, schedule: str | None) -> str:
        """Names, and the learning rate where there is one; ``schedule`` is ``model.schedule``."""
        rate = self.optimizer["init_args"].get("lr")
        name = _name(self.optimizer) if rate is None else f"{_name(self.optimizer)} {rate:g}"
        follows = schedule if self.scheduler is None else _name(self.scheduler)
        return name if follows is None else f"{name}, {follows}"


def _name(init: Any) -> str:  # noqa: ANN401
    return str(init["class_path"]).rpartition(".")[2]


def _build(option: str, first: object, init: Any) -> Any:  # noqa: ANN401
    try:
        return instantiate_class(first, init)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"--{option} {_name(init)} refuses its options: {error}") from error


def refuse_to_stretch(trainer: Trainer) -> None:
    """Stop where a schedule by steps, resumed or of the user's own, ends before the training.

    Raises:
        UserError: with the step or epoch at which it ends.
    """
    for config in trainer.lr_scheduler_configs:
        planned, by_step = getattr(config.scheduler, "total_steps", math.inf), config.interval == "step"
        if planned < (trainer.estimated_stepping_batches if by_step else trainer.max_epochs or 0):
            raise UserError(
                f"the schedule of the learning rate ends at {config.interval} {planned}, before "
                "trainer.max_epochs; resume with the epochs it was planned for, or train anew"
            )
