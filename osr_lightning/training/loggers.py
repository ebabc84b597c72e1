"""TensorBoard and ``metrics.csv`` in one run folder."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from osr_lightning.atomic_write import refuse_outside, replacing_rows, report_write_errors, write_bytes
from osr_lightning.training.console import is_another, say


def run_folder(trainer: Trainer) -> Path | None:
    """Where a run's files go, None where no logger names a folder; every process must ask.

    It is that of the first logger, as Lightning has it for checkpoints too: of one that keeps many runs in
    its folder, the part that is this run's.
    """
    log_dir = trainer.log_dir  # broadcast
    if not trainer.loggers or log_dir is None:
        return None
    first = trainer.loggers[0]
    if isinstance(first, (CSVLogger, TensorBoardLogger)):
        return Path(log_dir)
    own = (str(first.name), str(first.version)) if trainer.is_global_zero else ("", "")
    return Path(log_dir, *trainer.strategy.broadcast(own))


def named_folder(root: str | Path, experiment: str, version: int | str) -> Path:
    """The run folder of a version, a number or a name."""
    name = f"version_{version}" if str(version).isdecimal() else str(version)
    return Path(root, "lightning_logs", experiment, name)


def holds_training(folder: Path) -> bool:
    """Whether a run folder has checkpoints, which another training would write over."""
    return any(folder.glob("checkpoints/*.ckpt"))


def with_run_folder(
    given: Iterable[Logger], root: str, experiment: str, version: int | str | None
) -> list[Logger]:
    """Loggers of the user's, that of a run folder first; ours before them where none of theirs has one.

    Ours are TensorBoard and CSV loggers that share one run folder; a resumed run keeps its ``metrics.csv``.
    """
    keepers: list[Logger] = []
    others: list[Logger] = []
    for logger in given:
        (keepers if isinstance(logger, (CSVLogger, TensorBoardLogger)) else others).append(logger)
    if not keepers:
        name = os.path.join("lightning_logs", experiment)
        tensorboard = ClaimingTensorBoardLogger(root, name, version, default_hp_metric=False)
        keepers = [tensorboard, ResumableCSVLogger(tensorboard)]
    return [*keepers, *others]


def tensorboard_tag(name: str) -> str:
    """``loss/train`` for ``train/loss``: TensorBoard sorts tags, so curves come before the test's numbers.

    Those of one quantity stand side by side, too.
    """
    stage, _, quantity = name.partition("/")
    return f"{quantity}/{stage}" if stage in ("train", "val") and quantity else name


class ClaimingTensorBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoard logger, but runs that start at once get a folder each; curves come first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **kwargs)
        if self._version is not None:  # a folder that is there may be a stranger's
            refuse_outside(Path(self.log_dir))
        # whether the run folder, once there is one, is of this logger's making
        self._makes = self._version is None or not Path(self.log_dir).exists()
        self._held = None if self._makes else _held_in(Path(self.log_dir))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log under `tensorboard_tag`; the epoch's number is no curve to look at."""
        named = {tensorboard_tag(name): value for name, value in metrics.items()}
        named.pop("epoch", None)
        super().log_metrics(named, step)

    @property
    def version(self) -> int | str:
        """The number N of the run folder; the first to ask for a new one makes that."""
        if self._version is None:
            self._version = claim_version(Path(self.root_dir))
        return self._version

    def withdraw(self) -> None:
        """Remove the run folder if it was made here, and those above if nothing else is in them.

        One that was there is left as it was found.
        """
        if self._version is None or is_another():
            return
        with suppress(OSError):
            if self._experiment is not None:
                self._experiment.close()
        self._experiment = None  # Lightning would write its end
        folder = Path(self.log_dir)
        if self._held is not None:
            _put_back(folder, self._held)
        if not self._makes:
            return
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()
            folder.parent.parent.rmdir()


_EVENTS = "events.out.tfevents"


def _written_first(folder: Path) -> list[Path]:
    """The files that a command writes before its first step."""
    names = ("config.yaml", "hparams.yaml", "metrics.csv")
    return [path for path in folder.iterdir() if path.name in names or path.name.startswith(_EVENTS)]


def _held_in(folder: Path) -> dict[Path, bytes | None] | None:
    """These files, and what is in those that are written anew; None where that cannot be known."""
    with suppress(OSError):
        return {
            path: None if path.name.startswith(_EVENTS) else path.read_bytes()
            for path in _written_first(folder)
        }
    return None


def _put_back(folder: Path, held: Mapping[Path, bytes | None]) -> None:
    with suppress(OSError):
        for path in _written_first(folder):
            if path not in held:
                path.unlink()
        for path, content in held.items():
            if content is not None and path.read_bytes() != content:
                write_bytes(path, content)


class WithdrawUnused(Callback):
    """Leaves no trace of a command that failed before its first step: no run folder, or that of before."""

    def __init__(self) -> None:
        self._begun = False

    def _begin(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """From now on there is something to keep."""
        self._begun = True

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _begin

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """The same."""
        self._begun |= not trainer.sanity_checking

    def on_exception(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Take the folder back."""
        for logger in () if self._begun else trainer.loggers:
            if isinstance(logger, ClaimingTensorBoardLogger):
                logger.withdraw()
            elif isinstance(logger, ResumableCSVLogger):
                logger._experiment = None  # Lightning would write its rows once more


def claim_version(experiment: Path) -> int:
    """Make the next run folder of an experiment, which no other process then can.

    Processes other than the first get a number that they make no use of.

    Raises:
        Failure: if the folder cannot be written.
    """
    with report_write_errors(experiment):
        while True:
            taken = [int(n) for p in experiment.glob("version_*") if (n := p.name[8:]).isdecimal()]
            number = max(taken, default=-1) + 1
            if is_another():
                return number
            try:
                (experiment / f"version_{number}").mkdir(parents=True)
            except FileExistsError:
                continue  # another process was first
            return number


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, which deletes an earlier ``metrics.csv``; this one carries its rows on.

    Args:
        tensorboard: the logger whose run folder it shares.
    """

    def __init__(self, tensorboard: TensorBoardLogger) -> None:
        self._tensorboard = tensorboard
        super().__init__(tensorboard.save_dir, tensorboard.name)

    @property
    def version(self) -> int | str:
        """The number of the run folder."""
        return self._tensorboard.version

    @property
    def experiment(self) -> Any:  # noqa: ANN401
        """The writer, holding the rows that the run folder has."""
        if self._experiment is None and not is_another():
            with report_write_errors(self.log_dir):
                self._experiment = RowsWriter(self.log_dir)
        return super().experiment  # processes other than rank 0 get a dummy


class RowsWriter(ExperimentWriter):
    """Lightning's writer, but each save leaves a whole file, and rows from before go on."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        self.metrics: list[dict[str, Any]] = _read_rows(Path(self.metrics_file_path))

    def _check_log_dir_exists(self) -> None:
        """Lightning deletes an earlier file here."""

    def save(self) -> None:
        """Write all rows."""
        if self.metrics:
            with replacing_rows(self.metrics_file_path) as file:
                writer = csv.DictWriter(file, sorted(set().union(*self.metrics)))
                writer.writeheader()
                writer.writerows(self.metrics)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline="") as file:
            rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file, strict=True)]
        if any(None in row or None in row.values() for row in rows):
            raise csv.Error
    except (csv.Error, UnicodeDecodeError):
        kept = path.with_name("metrics.damaged.csv")
        path.replace(kept)
        say(f"{path} is damaged and was kept as {kept.name}; a new one is begun")
        return []
    return rows


def rows_writer(loggers: list[Logger]) -> RowsWriter | None:
    """What holds the rows of ``metrics.csv`` until now; None where no logger keeps any."""
    for logger in loggers:
        if isinstance(logger, ResumableCSVLogger) and isinstance(logger.experiment, RowsWriter):
            return logger.experiment
    return None
