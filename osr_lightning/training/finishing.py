"""What is left to do once a loop of the trainer is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer

from osr_lightning import checkpoint as checkpoints
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.scoring.calibration import NEEDS_UNKNOWNS
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.training.base import OpenSetClassifier
from osr_lightning.training.calibrating import calibrate_checkpoint, write
from osr_lightning.training.console import say
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.loggers import run_folder

if TYPE_CHECKING:
    from osr_lightning.training.trainer import OpenSetTrainer


def fits_scores(model: OpenSetClassifier) -> bool:
    """Whether a fit ends with `calibrate_kept`, as far as the options tell."""
    options = model.options
    fitted = options.score in DETECTORS or bool(options.detectors)
    return fitted and options.calibration not in NEEDS_UNKNOWNS


def calibrate_kept(trainer: OpenSetTrainer, model: OpenSetClassifier, datamodule: OpenSetDataModule) -> None:
    """Fit the scores that are fitted to the weights that a training kept, and choose their thresholds.

    Each epoch would have to look at all training images for that; so it is done once, for the checkpoints
    that are there at the end, or for the model itself where there are none. A method that needs unknown
    images is left to the command calibrate, which brings them.

    Args:
        trainer: at the end of a fit, whose metrics stay.
        model: that was trained; it ends with the weights that it has.
        datamodule: the images.
    """
    dry = getattr(trainer, "fast_dev_run", False)
    if dry or not model.trained.detectors or model.options.calibration in NEEDS_UNKNOWNS:
        return
    metrics = dict(trainer.callback_metrics)
    paths = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    kept = list(dict.fromkeys(path for path in paths if path and Path(path).is_file()))
    step = None
    for path in kept or [None]:
        source = None if path is None else checkpoints.read(path)
        if source is None or source.get("global_step") != step:
            calibrate_checkpoint(trainer, model, datamodule, path, output=path, in_place=False)
            step = None if source is None else source.get("global_step")
        elif trainer.is_global_zero:  # the best weights are the last, and the model has them
            write(model, datamodule, source, Path(str(path)))
    record = model.trained.threshold.record
    say(f"threshold {record.value:.6g} on {model.options.score}, from {record.calibrated_on}")
    trainer.callback_metrics.update(metrics)


def write_rows(trainer: Trainer, batches: Any, datamodule: Any) -> None:  # noqa: ANN401
    """Write what ``predict`` gave to ``predictions.csv`` in the run folder, where there is one."""
    folder = run_folder(trainer)
    model = trainer.lightning_module
    if not batches or not isinstance(model, OpenSetClassifier) or folder is None:
        return
    from osr_lightning.evaluation.predictions import write_predictions

    rows = gather_rows(batches, trainer.strategy.root_device)
    if trainer.is_global_zero:
        path = write_predictions(folder, rows, model.trained, datamodule)
        print(f"{len(rows['row'])} predictions: {path}")
