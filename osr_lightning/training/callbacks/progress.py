"""The progress of a command: a line per epoch and stage, a bar in a terminal, the training's time left."""

from __future__ import annotations

import math
import shutil
import time
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from osr_lightning.data.datamodule import datamodule_of
from osr_lightning.training.console import epoch_line, of, say, time_left

_EVERY = 0.1  # seconds between two looks of the bar


class Progress(ProgressBar):
    """A line for every epoch, with the time that is left of the training, and for every later stage.

    In a terminal a bar shows what is done of the stage at hand; in pipes, files and dumb terminals there are
    only the lines.

    Args:
        console: where the bar is drawn; the standard output if not given.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self._given = console
        self._enabled = True
        self._bar: Bar | None = None
        self._drawn = 0.0
        self._begin = self._done = 0.0  # of the training, seconds and epochs when it began
        self._said = -1
        self._stage = "predict"

    def disable(self) -> None:
        """Say nothing, as on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Go on."""
        self._enabled = True

    @property
    def console(self) -> Console:
        """Made when it is asked for: a callback may be copied and sent to other processes."""
        return self._given or Console(highlight=False, markup=False)

    @property
    def _width(self) -> int:
        console = self.console  # rich takes every dumb terminal for one of 80 columns
        return shutil.get_terminal_size().columns if console.is_dumb_terminal else console.width

    def stage(self, name: str, images: int | None = None) -> None:
        """Say that a later stage of the command begins: calibrate, test, report.

        Args:
            name: of the stage.
            images: that it looks at.
        """
        self._close()
        self._stage = name
        if self._enabled:
            say(f"{name:<9}  {images:,} images" if images else name)

    # training -----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Start the clock."""
        self._begin, self._done = time.perf_counter(), _epochs_done(trainer, 0)
        self._said = trainer.current_epoch - 1

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """The epoch before is whole only now, with its metrics."""
        self._say_epochs(trainer, trainer.current_epoch)
        number = of(trainer.current_epoch + 1, _epochs_in_all(trainer))
        self._open(f"epoch {number}", trainer.num_training_batches)

    def _batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,  # noqa: ANN401
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the bar, but at no validation within a training."""
        trains = trainer.state.fn == "fit"
        if self._bar is not None and trains == trainer.training and self._is_due():
            done = _epochs_done(trainer, batch_idx + 1)
            self._draw(batch_idx + 1, self._left(trainer, done) if trains else None)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _batch_end

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Say the last epoch."""
        self._close()
        self._say_epochs(trainer, trainer.current_epoch)

    # after the training -------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Show the bar of the command validate."""
        if trainer.state.fn == "validate":
            self._open("validate", sum(trainer.num_val_batches))

    def on_validation_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Take it away."""
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Say what is tested."""
        self.stage("test", _test_images(trainer))
        self._open("test", sum(trainer.num_test_batches))

    def on_test_end(self, *args: Any) -> None:  # noqa: ANN401
        """What follows is drawing and writing."""
        self.stage("report")

    def on_predict_start(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Show the bar; a calibration predicts as well."""
        self._open(self._stage, sum(trainer.num_predict_batches))

    # the bar and its numbers --------------------------------------------------------------------------

    def _open(self, what: str, total: float) -> None:
        self._close()
        console = self.console
        if self._enabled and console.is_terminal and not console.is_dumb_terminal:
            columns = TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.fields[left]}")
            self._bar = Bar(*columns, console=console, transient=True, refresh_per_second=4, expand=True)
            self._bar.add_task(what, total=None if math.isinf(total) else total, left="")
            self._bar.start()

    def _close(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Leave the terminal as it was."""
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()

    on_predict_end = on_exception = teardown = _close

    def _is_due(self) -> bool:
        now = time.perf_counter()
        due = now - self._drawn >= _EVERY
        self._drawn = now if due else self._drawn
        return due

    def _draw(self, batches: int, left: float | None) -> None:
        assert self._bar is not None
        task = self._bar.tasks[0]
        if left is None and task.total:
            left = (task.total - batches) * (task.elapsed or 0.0) / batches
        self._bar.update(task.id, completed=batches, left=time_left(left))

    def _say_epochs(self, trainer: Trainer, whole: int) -> None:
        """Say the epoch that was finished last, once."""
        if self._enabled and whole - 1 > self._said:
            self._said = whole - 1
            self._close()
            left = self._left(trainer, whole)
            say(epoch_line(whole, _epochs_in_all(trainer), trainer.callback_metrics, left, self._width))

    def _left(self, trainer: Trainer, done: float) -> float | None:
        """Estimates the seconds until the training ends, from how long its epochs took."""
        epochs = _epochs_in_all(trainer)
        if epochs is None or done <= self._done:
            return None
        return max(0.0, epochs - done) * (time.perf_counter() - self._begin) / (done - self._done)


def begin_stage(trainer: Trainer, name: str, images: int) -> None:
    """See `Progress.stage`; nothing where there is none."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Progress):
            callback.stage(name, images)


def _test_images(trainer: Trainer) -> int | None:
    """How many images the test looks at; None for a datamodule of others."""
    datamodule = datamodule_of(trainer)
    if datamodule is None or datamodule.tables.test is None:
        return None
    loader = trainer.test_dataloaders
    together = (getattr(loader, "batch_size", None) or math.inf) * trainer.world_size
    return int(min(len(datamodule.tables.test), sum(trainer.num_test_batches) * together))


def _epochs_in_all(trainer: Trainer) -> int | None:
    """How many epochs the training will have; None where it knows no end."""
    ends = [trainer.max_epochs] if trainer.max_epochs not in (None, -1) else []
    batches = trainer.num_training_batches
    if trainer.max_steps != -1 and not math.isinf(batches):
        steps = math.ceil(batches / trainer.accumulate_grad_batches)  # the last of an epoch may be of fewer
        ends.append(math.ceil(trainer.max_steps / steps))
    return min((end for end in ends if end is not None), default=None)


def _epochs_done(trainer: Trainer, batches: int) -> float:
    """How many epochs are over, with the share of this one that its batches are."""
    return trainer.current_epoch + batches / max(1, trainer.num_training_batches)
