"""What a command says on the console, and what of Lightning's own words it keeps back."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from osr_lightning.scoring.calibration import misgivings
from osr_lightning.scoring.threshold import Threshold

NOT_FOR_USERS = (
    ".*does not have many workers.*",  # the images are in memory
    ".*when logging on epoch level in distributed setting.*",  # torchmetrics' values are of all processes
    ".*is smaller than the logging interval.*",  # metrics are logged once an epoch
    ".*LeafSpec.* is deprecated.*",  # between Lightning and torch
    ".*lightning_logs.* exists and is not empty.*",  # a resumed run goes on in its own folder
    ".*in eval mode at the start of training.*",  # a backbone stays in it
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


def is_another() -> bool:
    """Whether this is not the first of several processes; there is one where Lightning is not loaded."""
    lightning = sys.modules.get("lightning.pytorch.utilities")
    return lightning is not None and bool(getattr(lightning.rank_zero_only, "rank", 0))


def say(text: str, *, always: bool = False) -> None:
    """Print a line, on the first process; at once, as a pipe would keep it until the end.

    Args:
        text: the line.
        always: even within `silence`.
    """
    if not is_another() and (always or not _silent[0]):
        print(text, flush=True)  # above the progress bar, which stands in for sys.stdout


def device_name(device: torch.device) -> str:
    """A GPU's own name, or the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def epoch_line(
    epoch: int, epochs: int | None, metrics: Mapping[str, Tensor], left: float | None, width: int
) -> str:
    """A finished epoch in one line, with as much as the width has room for.

    Args:
        epoch: its number, from 1 on.
        epochs: how many there will be; None where nobody knows.
        metrics: by name, of which those of `OpenSetClassifier` are shown.
        left: seconds until the training ends; None where nobody knows.
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


def say_threshold(threshold: Threshold, target: Path | None) -> None:
    """Say of a threshold its value, where it is, and what is wrong with it."""
    chosen = threshold.record
    flattered = "; optimistic: test images chose it" if chosen.optimistic else ""
    where = "" if target is None else f" ({target})"
    say(
        f"threshold {chosen.value:.6g} on {threshold.score} by {chosen.method}, from {chosen.calibrated_on}"
        f"{flattered}{where}"
    )
    unknown = {"the unknown sets": chosen.rejected_unknown}
    for warning in misgivings(chosen.rejected_known, unknown, "calibration images"):
        say(f"warning: {warning}")
