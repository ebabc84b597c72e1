"""What a command says on the console, and what of Lightning's own words it keeps back."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from osr_lightning.training.hardware import TrainingBFloat16
from osr_lightning.training.module import network_name

if TYPE_CHECKING:
    from osr_lightning.training.base import OpenSetClassifier

NOT_FOR_USERS = (
    ".*does not have many workers.*",  # the images are in memory
    ".*when logging on epoch level in distributed setting.*",  # torchmetrics' values are of all processes
    ".*is smaller than the logging interval.*",  # metrics are logged once an epoch
    ".*LeafSpec.* is deprecated.*",  # between Lightning and torch
    ".*lightning_logs.* exists and is not empty.*",  # a resumed run goes on in its own folder
    ".*The dirpath has changed from.*",  # a test writes a folder of its own
)
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.fabric.utilities.distributed",
)
_silent = [False]


def hush(*, verbose: bool = False) -> None:
    """Keep back what Lightning says of its own doings, and its warnings that do not hold here.

    Args:
        verbose: let it say everything.
    """
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        (logger.removeFilter if verbose else logger.addFilter)(_is_warning)
    if not verbose:
        for message in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


@contextmanager
def silence() -> Iterator[None]:
    """Say nothing of what follows: a search trains a hundred times."""
    before, _silent[0] = _silent[0], True
    try:
        yield
    finally:
        _silent[0] = before


@rank_zero_only
def say(text: str, *, always: bool = False) -> None:
    """Print a line, on the first process; at once, as a pipe would keep it until the end.

    Args:
        text: the line.
        always: even within `silence`.
    """
    if always or not _silent[0]:
        print(text, flush=True)  # above the progress bar, which stands in for sys.stdout


def say_start(model: OpenSetClassifier) -> None:
    """What is trained, how, on what, and where its files go; every process must ask."""
    trainer, plan = model.trainer, model.plan
    folder = trainer.log_dir if trainer.loggers else None  # broadcast
    own = f"{'AdamW' if plan.weight_decay else 'Adam'} {plan.learning_rate:g}, {plan.schedule}"
    count = sum(weight.numel() for weight in model.trained.sampler.parameters())
    epochs = (
        ""
        if trainer.max_epochs in (None, -1)
        else f", {trainer.max_epochs} epoch{'s' * (trainer.max_epochs != 1)}"
    )
    say(
        f"training: {network_name(model.trained.sampler)} ({count:,} weights), "
        f"augmentation {plan.augment}, {model.own_optimizer or own}{epochs}"
    )
    processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
    say(f"device: {_device(model.device)}{processes}, {_precision(model)}")
    if folder is not None:
        say(f"run folder: {Path(folder)}")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _precision(model: OpenSetClassifier) -> str:
    if isinstance(model.trainer.precision_plugin, TrainingBFloat16):
        return "training steps in bf16-mixed (trainer.precision 32-true makes them float32)"
    return {"32-true": "float32"}.get(str(model.trainer.precision), str(model.trainer.precision))


def epoch_line(
    epoch: int, epochs: int | None, metrics: Mapping[str, Tensor], left: float | None, width: int
) -> str:
    """A finished epoch in one line, with as much as the width has room for.

    Args:
        epoch: its number, from 1 on.
        epochs: how many there will be; None where nobody knows.
        metrics: by name, of which those of `OpenSetClassifier` are shown.
        left: seconds until the command ends; None where nobody knows.
        width: in characters.
    """
    said = {name: float(value) for name, value in metrics.items()}
    loss = _pair("loss", said.get("train/loss"), said.get("val/loss"), "{:.4f}")
    accuracy = _pair("accuracy", said.get("train/accuracy"), said.get("val/accuracy"), "{:.2%}")
    short = _pair("acc.", None, said.get("val/accuracy"), "{:.1%}")
    begin, end = f"epoch {of(epoch, epochs)}", time_left(left)
    lines = (
        "  ".join(part for part in parts if part)
        for parts in ((begin, loss, accuracy, end), (begin, accuracy, end), (begin, short, end), (begin, end))
    )
    return next((line for line in lines if len(line) <= width), begin)


def _pair(name: str, train: float | None, val: float | None, shape: str) -> str:
    both = [("", train), ("val ", val)]
    shown = ", ".join(prefix + shape.format(value) for prefix, value in both if value is not None)
    return f"{name} {shown}" if shown else ""


def of(epoch: int, epochs: int | None) -> str:
    """The number of an epoch, and how many there are where that is known."""
    return str(epoch) if epochs is None else f"{epoch:>{len(str(epochs))}}/{epochs}"


def time_left(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds; nothing where they are unknown."""
    if seconds is None:
        return ""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"
