"""The trainer: Lightning's own, plus the run folder and the commands that need more than one loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins import Precision
from lightning.pytorch.utilities import rank_zero_info

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.distributed import gather_rows
from osr_lightning.errors import UserError
from osr_lightning.evaluation.evaluator import Evaluator
from osr_lightning.hardware import TrainingBFloat16, computes_bfloat16
from osr_lightning.models.open_set import OpenSetClassifier
from osr_lightning.scoring.calibration import NEEDS_UNKNOWNS


class OpenSetTrainer(Trainer):
    """Lightning's Trainer with a complete run folder and the commands run and calibrate.

    Args:
        experiment: runs are written to default_root_dir/lightning_logs/EXPERIMENT/version_N.
        version: N; the next free number if not given.
        default_root_dir: folder that holds lightning_logs.
        max_epochs: training stops after so many passes over the training images.
        logger: TensorBoard and metrics.csv if not given; false for none, which leaves no run folder.
        callbacks: more of them, beside those that keep checkpoints and evaluate.
        enable_checkpointing: whether to write best.ckpt (by validation accuracy) and last.ckpt.
        accelerator: cpu, gpu, tpu or auto; mps has no float64, which scores need, so auto passes it over.
        precision: of the passes. auto: float32, but where a CPU computes bfloat16 itself, training steps are
            bf16-mixed; scores are float32 either way. All others are Lightning's and hold for every pass.
        kwargs: all other arguments of lightning.pytorch.Trainer.
    """

    def __init__(
        self,
        experiment: str = "default",
        version: int | None = None,
        default_root_dir: str = ".",
        max_epochs: int = 15,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        enable_checkpointing: bool = True,
        accelerator: str | Accelerator = "auto",
        precision: Literal["auto"] | _PRECISION_INPUT | None = "auto",
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self.experiment = experiment
        # seconds, for results.json; null where a stage did not run
        self.timing: dict[str, float | None] = {"fit_s": None, "calibrate_s": None}
        if logger is None or logger is True:
            logger = run_folder_loggers(default_root_dir, experiment, version)
        if not torch.cuda.is_available():
            # Lightning sets this, and with it torch's optimizers look for a GPU driver at every step
            os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        if torch.backends.mps.is_available() and not torch.cuda.is_available():
            if accelerator == "mps":
                raise UserError("scores need float64, which mps lacks; use trainer.accelerator cpu")
            accelerator = "cpu" if accelerator == "auto" else accelerator
        given = [callbacks] if isinstance(callbacks, Callback) else callbacks or []
        if not any(isinstance(callback, Evaluator) for callback in given):
            given = [*given, Evaluator()]
        super().__init__(
            default_root_dir=default_root_dir,
            max_epochs=max_epochs,
            logger=logger,
            callbacks=[*(checkpoints() if enable_checkpointing else []), *given],
            enable_checkpointing=enable_checkpointing,
            accelerator=accelerator,
            precision=None if precision == "auto" else precision,
            **kwargs,
        )
        native = isinstance(self.accelerator, CPUAccelerator) and computes_bfloat16()
        # a plugin of the user's own stays
        if precision == "auto" and native and type(self.precision_plugin) is Precision:
            self.strategy.precision_plugin = TrainingBFloat16()

    def run(
        self,
        model: OpenSetClassifier,
        datamodule: OpenSetDataModule,
        ckpt_path: str | None = None,
    ) -> None:
        """Train, calibrate and test the best checkpoint, and write the complete run folder.

        Args:
            model: what to train.
            datamodule: the images.
            ckpt_path: a checkpoint to resume from; last for the newest one of this experiment.
        """
        _require_unknowns(model, datamodule)  # before the training, not after it
        begin = time.perf_counter()
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        self.timing["fit_s"] = time.perf_counter() - begin
        best = getattr(self.checkpoint_callback, "best_model_path", "")
        if not best:
            raise UserError("run tests the best checkpoint, and none was written; leave checkpointing on")
        self.calibrate(model, datamodule, best)
        self.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)

    def calibrate(
        self,
        model: OpenSetClassifier,
        datamodule: OpenSetDataModule,
        ckpt_path: str | None = None,
        output: str | None = None,
    ) -> None:
        """Choose the threshold of a trained checkpoint again, without training.

        The method is the model's (calibration, alpha, costs), the images are the datamodule's
        (calibrate_on, calibration_unknown). The records of all scores go to calibration.json.

        Args:
            model: of the checkpoint's class.
            datamodule: the images.
            ckpt_path: the checkpoint to calibrate.
            output: where to write the calibrated checkpoint; over ckpt_path if not given.
        """
        if ckpt_path is None:
            raise UserError("calibrate needs a trained checkpoint: pass its ckpt_path")
        _require_unknowns(model, datamodule)
        begin = time.perf_counter()
        datamodule.calibrating = True
        try:
            batches = super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path)
        finally:
            datamodule.calibrating = False
        results = gather_rows(batches, self.strategy.root_device)  # type: ignore[arg-type]
        calibrated_on = datamodule.calibrated_on(unknowns=model.method in NEEDS_UNKNOWNS)
        model.calibrate(results, calibrated_on, optimistic=datamodule.optimistic)
        log_dir = self.log_dir  # every process must ask: it is broadcast
        if self.is_global_zero:
            _write_threshold(model, datamodule, Path(ckpt_path), Path(output or ckpt_path))
            if log_dir is not None:
                records = {name: asdict(record) for name, record in model.calibrations.items()}
                folder = Path(log_dir)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "calibration.json").write_text(json.dumps(records, indent=2) + "\n")
        self.strategy.barrier("calibrated")
        self.timing["calibrate_s"] = time.perf_counter() - begin
        chosen = model.calibrations[model.score_name]
        flattered = "; optimistic: test images chose it" if chosen.optimistic else ""
        rank_zero_info(
            f"threshold {chosen.value:.6g} on {model.score_name} by {chosen.method}, from "
            f"{chosen.calibrated_on}{flattered} ({output or ckpt_path})"
        )

    def predict(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,  # noqa: ANN401
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        **kwargs: Any,  # noqa: ANN401 - what further versions of Lightning add
    ) -> list[Any] | None:
        """Classify images and write one row per image to predictions.csv.

        Args:
            model: the classifier.
            dataloaders: batches, instead of a datamodule.
            datamodule: the images.
            return_predictions: whether to return the rows too; true if not given.
            ckpt_path: the checkpoint whose weights and threshold decide.
            kwargs: see lightning.pytorch.Trainer.predict.
        """
        batches = super().predict(model, dataloaders, datamodule, None, ckpt_path, **kwargs)
        log_dir = self.log_dir  # every process must ask: it is broadcast
        if batches and isinstance(self.lightning_module, OpenSetClassifier) and log_dir is not None:
            from osr_lightning.evaluation.predictions import write_predictions

            rows = gather_rows(batches, self.strategy.root_device)  # type: ignore[arg-type]
            if self.is_global_zero:
                path = write_predictions(Path(log_dir), rows, self.lightning_module, datamodule)
                rank_zero_info(f"{len(rows['row'])} predictions: {path}")
        return batches if return_predictions in (None, True) else None


def _require_unknowns(model: OpenSetClassifier, datamodule: OpenSetDataModule) -> None:
    no_unknowns = datamodule.calibrate_on == "validation" and not datamodule.calibration_unknown
    if model.method in NEEDS_UNKNOWNS and no_unknowns:
        raise UserError(
            f"model.calibration {model.method} needs unknown images: name some with "
            "data.calibration_unknown, or use known_quantile"
        )


def checkpoints() -> list[Callback]:
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
        import csv
        import warnings

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


def _write_threshold(
    model: OpenSetClassifier, datamodule: OpenSetDataModule, source: Path, target: Path
) -> None:
    """Write ``source`` with the model's threshold and records to ``target``, at once or not at all."""
    checkpoint: dict[str, Any] = torch.load(source, map_location="cpu", weights_only=True)
    # the weights as they were, the new threshold, and fitted detectors if there are any
    checkpoint["state_dict"] = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    model.on_save_checkpoint(checkpoint)
    # a later test starts from these settings, and its leak audit must know what calibrated
    checkpoint["hyper_parameters"] = dict(model.hparams)
    checkpoint["datamodule_hyper_parameters"] = dict(datamodule.hparams)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    torch.save(checkpoint, partial)
    partial.replace(target)
