"""The trainer: Lightning's own, plus the run folder and the commands that need more than one loop."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.files import folder_name
from osr_lightning.training.base import OpenSetClassifier
from osr_lightning.training.calibrating import calibrate_checkpoint, require_unknowns, tell
from osr_lightning.training.console import hush
from osr_lightning.training.defaults import check_epochs, check_limits, require_best
from osr_lightning.training.evaluator import Evaluator
from osr_lightning.training.finishing import calibrate_kept, fits_scores
from osr_lightning.training.hardware import choose_accelerator, train_in_bfloat16
from osr_lightning.training.keeping import WholeCheckpoints, checkpoint_callbacks
from osr_lightning.training.loggers import Begun, run_folder_loggers
from osr_lightning.training.progress import Progress
from osr_lightning.training.restoring_trainer import RestoringTrainer
from osr_lightning.training.waiting import watch


class OpenSetTrainer(RestoringTrainer):
    """Lightning's Trainer with a complete run folder and the commands run and calibrate.

    Args:
        experiment: runs are written to default_root_dir/lightning_logs/EXPERIMENT/version_N.
        version: N, or a name for the folder instead of version_N; the next free number if not given.
        default_root_dir: folder that holds lightning_logs.
        max_epochs: passes over the training images; what suits their number and the network if not given.
        logger: TensorBoard and metrics.csv if not given; false for none, and then nothing is written.
        callbacks: more of them, beside those that keep checkpoints and evaluate.
        enable_checkpointing: whether to write best.ckpt (by validation accuracy) and last.ckpt.
        checkpoint_minutes: minutes between two last.ckpt within an epoch; at its end alone if not given.
        accelerator: cpu, gpu, tpu or auto; mps has no float64, which scores need, so auto passes it over.
        precision: of the passes. auto: float32, but where a CPU computes bfloat16 itself, training steps are
            bf16-mixed; scores are float32 either way. All others are Lightning's and hold for every pass.
        enable_progress_bar: a line per epoch with the time that is left, and a bar in a terminal.
        enable_model_summary: Lightning's table of the modules; with verbose alone if not given.
        verbose: whether Lightning tells of its own doings too.
        kwargs: all other arguments of lightning.pytorch.Trainer.
    """

    def __init__(
        self,
        experiment: str = "default",
        version: int | str | None = None,
        default_root_dir: str = ".",
        max_epochs: int | None = None,
        logger: Logger | Iterable[Logger] | bool | None = None,
        callbacks: list[Callback] | Callback | None = None,
        enable_checkpointing: bool = True,
        checkpoint_minutes: float | None = None,
        accelerator: str | Accelerator = "auto",
        precision: Literal["auto"] | _PRECISION_INPUT | None = "auto",
        enable_progress_bar: bool | None = None,
        enable_model_summary: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        hush(verbose=verbose)
        ends = ("max_time", "fast_dev_run")
        unlimited = kwargs.get("max_steps", -1) == -1 and not any(kwargs.get(name) for name in ends)
        self._epochs_open = max_epochs is None and unlimited
        self.experiment = experiment
        self.stages: tuple[str, ...] = ()  # that follow the training
        self.timing: dict[str, float | None] = {
            "fit_s": None,
            "calibrate_s": None,
        }  # seconds, for results.json
        check_limits(checkpoint_minutes, kwargs)
        if isinstance(version, str):
            folder_name("trainer.version", version)
        if logger is None or logger is True:
            logger = run_folder_loggers(default_root_dir, experiment, version)
        keep = enable_checkpointing and logger is not False  # without a run folder they have no place
        accelerator = choose_accelerator(accelerator)
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or [])
        if not any(isinstance(one, Evaluator) for one in given):
            given.append(Evaluator())
        if enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in given):
            given.insert(0, Progress())
        super().__init__(
            default_root_dir=default_root_dir,
            max_epochs=check_epochs(max_epochs),
            logger=logger,
            callbacks=[Begun(), *checkpoint_callbacks(checkpoint_minutes, keep=keep), *given],
            # a callback of the user's still writes where it was told to
            enable_checkpointing=keep or any(isinstance(one, Checkpoint) for one in given),
            enable_progress_bar=enable_progress_bar is not False,
            enable_model_summary=verbose if enable_model_summary is None else enable_model_summary,
            accelerator=accelerator,
            precision=None if precision == "auto" else precision,
            **kwargs,
        )
        if precision == "auto":
            train_in_bfloat16(self)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = WholeCheckpoints()

    def run(
        self, model: OpenSetClassifier, datamodule: OpenSetDataModule, ckpt_path: str | None = None
    ) -> dict[str, Any]:
        """Train, calibrate and test the best checkpoint, and write the complete run folder.

        Args:
            model: what to train.
            datamodule: the images.
            ckpt_path: a checkpoint to resume from; last for the newest one of this experiment.

        Returns:
            The content of results.json, on the first process.
        """
        require_unknowns(model, datamodule)  # before the training, not after it
        require_best(self)
        drawn = any(isinstance(c, Evaluator) and c.figures for c in self.callbacks)  # type: ignore[attr-defined]
        self.stages = ("calibrate", "test", "report") if drawn else ("calibrate", "test")
        begin = time.perf_counter()
        self._fit(model, datamodule, ckpt_path)
        self.timing["fit_s"] = time.perf_counter() - begin
        if not (best := getattr(self.checkpoint_callback, "best_model_path", "")):
            raise UserError("run tests the best checkpoint, and none was written: train a whole epoch")
        self.calibrate(model, datamodule, best, output=best)
        self.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)
        found = (c.outcome for c in self.callbacks if isinstance(c, Evaluator))  # type: ignore[attr-defined]
        return next((outcome[0] for outcome in found if outcome is not None), {})

    def calibrate(
        self,
        model: OpenSetClassifier,
        datamodule: OpenSetDataModule,
        ckpt_path: str | None = None,
        output: str | None = None,
        in_place: bool = False,
    ) -> None:
        """Choose the threshold of a trained checkpoint again, without training.

        The method is the model's (calibration, alpha, costs, unknown_prior), the images are the
        datamodule's (calibrate_on, calibration_unknown). The records of all scores go to calibration.json.

        Args:
            model: of the checkpoint's class.
            datamodule: the images.
            ckpt_path: the checkpoint to calibrate; the model as it is if not given.
            output: where to write the calibrated checkpoint; beside ckpt_path as NAME.calibrated.ckpt if not
                given.
            in_place: write over ckpt_path, and test it again, so that the results of its run fit.
        """
        begin = time.perf_counter()
        tell(model, calibrate_checkpoint(self, model, datamodule, ckpt_path, output, in_place))
        self.timing["calibrate_s"] = time.perf_counter() - begin
        if in_place:
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def fit(  # type: ignore[override]
        self,
        model: LightningModule,
        train_dataloaders: Any | LightningDataModule | None = None,  # noqa: ANN401
        val_dataloaders: Any | None = None,  # noqa: ANN401
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        **kwargs: Any,  # noqa: ANN401 - what further versions of Lightning add
    ) -> None:
        """Train, and fit what is to be fitted to the weights that were kept.

        Args:
            model: the classifier.
            train_dataloaders: batches, instead of a datamodule.
            val_dataloaders: batches, instead of a datamodule.
            datamodule: the images.
            ckpt_path: a checkpoint to resume from; last for the newest one of this experiment.
            kwargs: see lightning.pytorch.Trainer.fit.
        """
        if isinstance(train_dataloaders, LightningDataModule):  # Lightning takes it here too
            train_dataloaders, datamodule = None, train_dataloaders
        self.stages = ("calibrate",) if isinstance(model, OpenSetClassifier) and fits_scores(model) else ()
        self._fit(model, datamodule, ckpt_path, (train_dataloaders, val_dataloaders), **kwargs)
        if isinstance(model, OpenSetClassifier) and isinstance(datamodule, OpenSetDataModule):
            calibrate_kept(self, model, datamodule)

    def _fit(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        ckpt_path: str | Path | None,
        loaders: tuple[Any, Any] = (None, None),
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        self.build(model, ckpt_path)
        if isinstance(model, OpenSetClassifier) and isinstance(datamodule, OpenSetDataModule):
            plan = model.decide_on(datamodule)
            watch(self, datamodule)
            if self._epochs_open:
                self.fit_loop.max_epochs = plan.epochs
        super().fit(model, *loaders, datamodule, ckpt_path, **kwargs)
