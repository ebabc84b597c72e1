"""TensorBoard and ``metrics.csv`` in one run folder, and the checkpoints beside them."""

from __future__ import annotations

import csv
import logging
import os
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

NOT_FOR_USERS = (
    ".*does not have many workers.*",  # the images are in memory
    ".*is smaller than the logging interval.*",  # metrics are logged once an epoch
    ".*LeafSpec.* is deprecated.*",  # between Lightning and torch
    ".*lightning_logs.* exists and is not empty.*",  # a resumed run goes on in its own folder
    ".*The dirpath has changed from.*",  # a test writes a folder of its own
)


def hush() -> None:
    """Keep back Lightning's remarks that do not hold here."""
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()


def checkpoint_callbacks() -> list[Callback]:
    """Callbacks that keep ``best.ckpt``, by validation accuracy, and ``last.ckpt``, to resume from.

    Lightning's own ``save_last`` is the last best one, not the last epoch.
    """
    best = ModelCheckpoint(
        filename="best",
        monitor="val/accuracy",
        mode="max",
        # a better checkpoint replaces best.ckpt instead of becoming best-v1.ckpt
        enable_version_counter=False,
    )
    return [best, ModelCheckpoint(filename="last", enable_version_counter=False)]


def run_folder_loggers(root: str, experiment: str, version: int | None) -> list[Logger]:
    """TensorBoard and CSV loggers that share one run folder; a resumed run keeps its ``metrics.csv``."""
    name = os.path.join("lightning_logs", experiment)
    tensorboard = TensorBoardLogger(root, name, version, default_hp_metric=False)
    return [tensorboard, ResumableCSVLogger(root, name, tensorboard.version)]


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger, which deletes an earlier ``metrics.csv``; this one carries its rows on."""

    @property
    def experiment(self) -> Any:  # noqa: ANN401
        """The writer, holding the rows of the run that is being resumed."""
        if self._experiment is not None:
            return super().experiment
        path = Path(self.log_dir) / "metrics.csv"
        rows: list[dict[str, Any]] = []
        if path.is_file():
            with path.open(newline="") as file:
                rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
            writer = super().experiment
        if rows and isinstance(writer, ExperimentWriter):  # processes other than rank 0 have a dummy
            writer.metrics.extend(rows)
            writer.save()
        return writer
