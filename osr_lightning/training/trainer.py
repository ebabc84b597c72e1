"""The trainer: Lightning's own, plus the run folder and the commands that need more than one loop."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from osr_lightning.atomic_write import folder_name, only_one, report_write_errors, write_text
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.deploy.predict import Counts, deciding_together
from osr_lightning.errors import UserError
from osr_lightning.evaluation.prediction_table import CSV_NAME
from osr_lightning.evaluation.run_results import RunResults
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.recogniser.rows import P_VALUE, Sink, write_rows
from osr_lightning.scoring.calibration import CROSS
from osr_lightning.scoring.p_values import check_rate, p_values
from osr_lightning.training.calibration import calibrated_path, require_unknowns
from osr_lightning.training.callbacks.checkpointing import WholeCheckpointIO, checkpoint_callbacks
from osr_lightning.training.callbacks.evaluator import Evaluator
from osr_lightning.training.callbacks.loader_watch import LoaderWatch
from osr_lightning.training.callbacks.plain_layout import PlainLayout
from osr_lightning.training.callbacks.progress import Progress, begin_stage
from osr_lightning.training.console import hush, say, say_threshold
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.loggers import (
    WithdrawUnused,
    holds_training,
    named_folder,
    run_folder,
    with_run_folder,
)
from osr_lightning.training.module import OpenSetClassifier
from osr_lightning.training.plan import STUDY_EPOCHS
from osr_lightning.training.precision import choose_accelerator, train_in_bfloat16
from osr_lightning.training.refusals import (
    FitChecks,
    check_limits,
    check_monitors,
    check_time,
    given_callbacks,
    refusals_of_lightning,
    refuse_names,
    require_best,
    require_classifier,
    require_images,
)


class OpenSetTrainer(Trainer):
    """Lightning's Trainer with a complete run folder and the commands run and calibrate.

    Args:
        experiment: name of the experiment; its runs are default_root_dir/lightning_logs/EXPERIMENT/version_N.
        version: number or name of the run folder; N of version_N, or a name instead of version_N; the next
            free number if not given.
        default_root_dir: folder that holds lightning_logs.
        max_epochs: passes over the training images; what suits their number and the network if not given.
        logger: what keeps the metrics, or false; TensorBoard and metrics.csv if not given, and before loggers
            that have no folder for a run. With false, there is no run folder, and nothing is written.
        callbacks: further callbacks of Lightning; beside those that keep checkpoints and evaluate.
        enable_checkpointing: write best.ckpt and last.ckpt; best is that by validation accuracy.
        checkpoint_minutes: minutes between two last.ckpt; within an epoch, whose end writes one as well; at
            each epoch's end alone if not given.
        accelerator: cpu, gpu, tpu or auto; mps has no float64, which scores need, so auto passes it over.
        precision: number format, as bf16-mixed; auto: float32, but where a CPU computes bfloat16
            itself, training steps are bf16-mixed; scores are float32 either way. All others are Lightning's
            and hold for every pass.
        enable_progress_bar: show the progress; a line per epoch with the time that is left, and a bar in a
            terminal; true if not given.
        enable_model_summary: Lightning's table of the modules; with verbose alone if not given.
        verbose: tell of Lightning's own doings too.
        devices: number of devices, or their indices; Lightning's, as all that follow.
        max_time: time after which to stop, as DD:HH:MM:SS.
        gradient_clip_val: largest norm of gradients; larger ones are scaled down to it.
        limit_train_batches: steps per epoch, or their share; all if not given.
        kwargs: all other arguments of lightning.pytorch.Trainer.

    Attributes:
        calibrates: that a training ends with the fit of scores, which a classifier then leaves to this.
        epochs_open: whether a classifier's plan says how many epochs there are.
        timing: seconds of fit and calibrate, for results.json.
    """

    calibrates = True

    def __init__(
        self,
        experiment: str = "default",
        version: str | int | None = None,
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
        self.epochs_open = max_epochs is None and unlimited
        self.experiment = experiment
        self.timing: dict[str, float | None] = {"fit_s": None, "calibrate_s": None}
        check_limits({**kwargs, "max_epochs": max_epochs, "checkpoint_minutes": checkpoint_minutes})
        if isinstance(version, str) and re.fullmatch("0|[1-9][0-9]*", version):
            version = int(version)  # the command line gives all names as text
        folder_name("trainer.experiment", experiment)
        if isinstance(version, str):
            folder_name("trainer.version", version)
        self._trained_before = version is not None and holds_training(
            named_folder(default_root_dir, experiment, version)
        )
        if logger is None or logger is True:
            logger = with_run_folder((), default_root_dir, experiment, version)
        elif logger:
            given_loggers = [logger] if isinstance(logger, Logger) else logger
            logger = with_run_folder(given_loggers, default_root_dir, experiment, version)
        keep = enable_checkpointing and logger is not False  # without a run folder they have no place
        accelerator = choose_accelerator(accelerator)
        given = given_callbacks(callbacks)
        if not any(isinstance(one, Evaluator) for one in given):
            given.append(Evaluator())
        if enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in given):
            given.insert(0, Progress())
        self._checks = FitChecks()
        kept = checkpoint_callbacks(checkpoint_minutes, keep=keep)
        own = [WithdrawUnused(), self._checks, *kept, LoaderWatch(), PlainLayout()]
        passes = None if precision == "auto" else precision
        with refusals_of_lightning({**kwargs, "accelerator": accelerator, "precision": passes}):
            super().__init__(
                default_root_dir=default_root_dir,
                max_epochs=STUDY_EPOCHS if max_epochs is None else max_epochs,  # until there is a plan
                logger=logger,
                callbacks=[*own, *given],
                # a callback of the user's still writes where it was told to
                enable_checkpointing=keep or any(isinstance(one, Checkpoint) for one in given),
                enable_progress_bar=enable_progress_bar is not False,
                enable_model_summary=verbose if enable_model_summary is None else enable_model_summary,
                accelerator=accelerator,
                precision=passes,
                **kwargs,
            )
        check_time(self)
        if precision == "auto":
            train_in_bfloat16(self)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = WholeCheckpointIO()

    # the commands -------------------------------------------------------------------------------------

    def run(
        self, model: OpenSetClassifier, datamodule: OpenSetDataModule, ckpt_path: str | None = None
    ) -> RunResults:
        """Train, calibrate and test the best checkpoint, and write the complete run folder.

        Args:
            model: what to train.
            datamodule: the images.
            ckpt_path: checkpoint to resume from, or last; last is the newest one of this experiment.

        Returns:
            The content of results.json on the first process, nothing on others.

        Raises:
            UserError: where the images are no `OpenSetDataModule`, or what would end the command late.
        """
        require_classifier("run", model)
        require_images("run", datamodule)
        require_unknowns(model.hparams, datamodule.hparams)  # before the training, not after it
        require_best(self)
        begin = time.perf_counter()
        self._checks.best_needed = True
        self._fit(model, (None, None), datamodule, ckpt_path)
        self._checks.best_needed = False
        self.timing["fit_s"] = time.perf_counter() - begin
        if not (best := getattr(self.checkpoint_callback, "best_model_path", "")):
            raise UserError("run tests the best checkpoint, and none was written: train a whole epoch")
        try:
            self.calibrate(model, datamodule, best, output=best)
            self.test(model, datamodule=datamodule, ckpt_path=best, verbose=False)
        except (KeyboardInterrupt, SystemExit):
            say("stopped after the training; --ckpt_path last goes on from there", always=True)
            raise
        found = (c.outcome for c in self.callbacks if isinstance(c, Evaluator))  # type: ignore[attr-defined]
        results, folder = next((outcome for outcome in found if outcome is not None), ({}, None))
        return RunResults(results, folder)

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
            ckpt_path: checkpoint to resume from, or last; last is the newest one of this experiment.
            kwargs: see lightning.pytorch.Trainer.fit.
        """
        if isinstance(train_dataloaders, LightningDataModule):  # Lightning takes it here too
            train_dataloaders, datamodule = None, train_dataloaders
        refuse_names("fit", train_dataloaders, datamodule)
        self._fit(model, (train_dataloaders, val_dataloaders), datamodule, ckpt_path, **kwargs)
        if isinstance(model, OpenSetClassifier) and isinstance(datamodule, OpenSetDataModule):
            self._calibrate_kept(model, datamodule)

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
            ckpt_path: trained checkpoint; without one, the model is calibrated as it is.
            output: file of the calibrated checkpoint; NAME.calibrated.ckpt beside ckpt_path if not given.
            in_place: write over ckpt_path, test it again; the results of its run then fit.
        """
        require_classifier("calibrate", model)
        require_images("calibrate", datamodule)
        if ckpt_path is None and model.recogniser is None:
            raise UserError(
                "calibrate takes a trained model, and this one is not: name its checkpoint, as "
                "calibrate(model, datamodule, 'best.ckpt'), or fit it first"
            )
        begin = time.perf_counter()
        target = calibrated_path(ckpt_path, output, in_place)
        self.write_calibrated(model, datamodule, ckpt_path, target, follow=in_place or output is not None)
        say_threshold(model.trained.threshold, target)
        self.timing["calibrate_s"] = time.perf_counter() - begin
        if in_place:
            self.test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False)

    def predict(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,  # noqa: ANN401
        datamodule: LightningDataModule | None = None,
        return_predictions: bool | None = None,
        ckpt_path: str | Path | None = None,
        output: str | None = None,
        fdr: float | None = None,
        **kwargs: Any,  # noqa: ANN401 - what further versions of Lightning add
    ) -> list[Any] | None:
        """Classify images and write one row per image.

        Args:
            model: the classifier.
            dataloaders: batches, instead of a datamodule.
            datamodule: the images.
            return_predictions: whether to return the rows too; true if not given.
            ckpt_path: trained checkpoint; its weights and threshold decide.
            output: file of the rows, as .csv, .jsonl or .parquet; predictions.csv in the run folder if not
                given.
            fdr: share of known images among those that the file calls unknown, at most and on average; the
                checkpoint's threshold decides if not given.
            kwargs: see lightning.pytorch.Trainer.predict.
        """
        refuse_names("predict", dataloaders, datamodule)
        batches = super().predict(model, dataloaders, datamodule, None, ckpt_path, **kwargs)
        folder = run_folder(self)
        where = output or (None if folder is None else folder / CSV_NAME)
        if batches and where is not None and isinstance(self.lightning_module, OpenSetClassifier):
            rows = gather_rows(batches, self.strategy.root_device)  # type: ignore[arg-type]
            if self.is_global_zero:
                trained = self.lightning_module.trained
                threshold, counts = trained.threshold, Counts()
                scores = {n.removeprefix("score/"): v for n, v in rows.items() if n.startswith("score/")}
                rows[P_VALUE] = torch.from_numpy(p_values(threshold.record, scores[threshold.score].numpy()))
                decided: Callable[[Sink], AbstractContextManager[Sink]] = nullcontext
                if fdr is not None:
                    check_rate(threshold.record, fdr)
                    rows["prediction"] = rows["predicted_class"]
                    decided = partial(deciding_together, threshold.record, fdr, counts=counts)
                names: Sequence[str] = ()
                if isinstance(datamodule, OpenSetDataModule):
                    source = datamodule.hparams["predict"]
                    names = (source,) if source else datamodule.tables.source_names
                write_rows(
                    where,
                    rows,
                    scores,
                    classes=trained.spec.classes,
                    deciding=threshold.score,
                    threshold=threshold.value,
                    sources=names,
                    files=getattr(getattr(datamodule, "predict_set", None), "files", ()),
                    follow=output is not None,
                    through=decided,
                )
                rule = f" ({counts.unknown:,} unknown{counts.rule})" if fdr is not None else ""
                print(
                    f"{len(rows['row'])} predictions{rule}: {where}",
                    file=sys.stderr if where == "-" else None,
                )
        return batches if return_predictions in (None, True) else None

    # their parts --------------------------------------------------------------------------------------

    def _fit(
        self,
        model: LightningModule,
        loaders: tuple[Any, Any],
        datamodule: LightningDataModule | None,
        ckpt_path: str | Path | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Lightning's fit, for which a resumed network is there before its images are set up."""
        check_monitors(self, model)
        if self._trained_before and ckpt_path is None and self.loggers:
            raise UserError(
                f"{self.log_dir} holds a trained run, which this would write over: go on with it by "
                "ckpt_path='last', or give OpenSetTrainer another version, or none"
            )
        if isinstance(model, OpenSetClassifier) and ckpt_path is not None and Path(ckpt_path).is_file():
            model.build_for(self.keeper.read_ahead(ckpt_path))  # a word, as last, names one written here
        folder = run_folder(self) if self.world_size == 1 else None
        if folder is None:
            super().fit(model, *loaders, datamodule, ckpt_path, **kwargs)
            return
        with report_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder, wait=False) as alone:
            if not alone:
                raise UserError(
                    f"another process trains in {folder}: wait for its end, or take another trainer.version"
                )
            super().fit(model, *loaders, datamodule, ckpt_path, **kwargs)

    @property
    def keeper(self) -> WholeCheckpointIO:
        """Reads and writes checkpoints; one that stands aside where the user brought another plugin."""
        keeper = self.strategy.checkpoint_io
        return keeper if isinstance(keeper, WholeCheckpointIO) else WholeCheckpointIO()

    def write_calibrated(
        self,
        model: OpenSetClassifier,
        datamodule: OpenSetDataModule,
        ckpt_path: str | Path | None,
        target: Path | None,
        *,
        follow: bool = False,
    ) -> None:
        """One pass over the images that calibrate, and the files that keep what it finds.

        Args:
            model: of the checkpoint's class; it ends with the checkpoint's weights.
            datamodule: the images.
            ckpt_path: the checkpoint to calibrate; the model as it is if not given.
            target: where to write the calibrated checkpoint; None for nowhere.
            follow: whether the user named that; see `osr_lightning.atomic_write.replacing`.

        Raises:
            UserError: where the images cannot serve the method.
        """
        require_unknowns(model.hparams, datamodule.hparams)
        source, tables = None, datamodule.tables
        if ckpt_path is not None:
            source = self.keeper.take(ckpt_path)
            model.restore(source)
        on_validation = datamodule.hparams["calibrate_on"] == "validation"
        tables.expect(model.trained.spec)
        method = model.calibration_method(datamodule)
        if method != CROSS:  # which fits what learned anew
            tables.refuse_seen(model.images_seen, "calibrate")
        model.check_alpha(datamodule)
        fitted = len(tables.load_training()[0]) if model.trained.detectors else 0
        begin_stage(self, "calibrate", fitted + len(tables.load_calibration()))
        device = self.strategy.root_device
        model.trained.to(device)

        def rows_of(loader: Iterable[Any]) -> dict[str, torch.Tensor]:
            # a limit on the images of predict is none on these
            limit, self.limit_predict_batches = self.limit_predict_batches, 1.0
            batches = Trainer.predict(self, model, loader)
            self.limit_predict_batches = limit
            return gather_rows(batches, device)  # type: ignore[arg-type]

        model.fit_and_calibrate(datamodule, rows_of)
        if model.images_seen is not None and on_validation:
            model.images_seen = model.images_seen.with_calibration(tables.load_calibration().images)
        folder = run_folder(self)
        if self.is_global_zero:
            if target is not None:
                self._write_checkpoint(model, datamodule, source, target, follow=follow)
            if folder is not None:
                names, kept = model.trained.spec.classes, model.trained.threshold.records
                records = {score: record.summary(names) for score, record in kept.items()}
                write_text(folder / "calibration.json", json.dumps(records, indent=2) + "\n")
        self.strategy.barrier("calibrated")

    def _write_checkpoint(
        self,
        model: OpenSetClassifier,
        datamodule: OpenSetDataModule,
        source: dict[str, Any] | None,
        target: Path,
        *,
        follow: bool = False,
    ) -> None:
        """Write the checkpoint ``source`` with the model's thresholds and detectors to ``target``."""
        if source is None:  # of a model that came from none
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            source = {
                "pytorch-lightning_version": lightning.__version__,
                "experiment": self.experiment,
                "seed": seed,
            }
        # the weights as they were, the new thresholds, and fitted detectors if there are any
        state = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in model.state_dict().items()
        }
        kept = {**source, "state_dict": state, "recogniser": checkpoints.content(model.trained)}
        # a later test starts from these settings, and its leak audit must know what calibrated
        if model.images_seen is not None:
            kept["images"] = model.images_seen._asdict()
        kept["hyper_parameters"] = dict(model.hparams)
        kept["datamodule_hyper_parameters"] = dict(datamodule.hparams)
        kept["precision"] = str(self.precision)
        checkpoints.write(kept, target, follow=follow)

    def _calibrate_kept(self, model: OpenSetClassifier, datamodule: OpenSetDataModule) -> None:
        """Fit the scores that are fitted to the weights that a training kept, and choose their thresholds.

        Each epoch would have to look at all training images for that; so it is done once, for the checkpoints
        that are there at the end, or for the model itself where there are none. A method that needs unknown
        images is left to the command calibrate, which brings them.
        """
        if getattr(self, "fast_dev_run", False) or not model.completes(datamodule):
            return
        metrics = dict(self.callback_metrics)
        # a last layer that was fitted again is no training to go on with, as last.ckpt is
        crossed = model.calibration_method(datamodule) == CROSS
        callbacks = [one for one in self.checkpoint_callbacks if not crossed or getattr(one, "monitor", None)]
        paths = [getattr(callback, "best_model_path", "") for callback in callbacks]
        kept = list(dict.fromkeys(path for path in paths if path and Path(path).is_file()))
        step = None
        for path in kept or [None]:
            source = None if path is None else self.keeper.read_ahead(path)
            if source is None or source.get("global_step") != step:
                self.write_calibrated(model, datamodule, path, None if path is None else Path(path))
                step = None if source is None else source.get("global_step")
            elif self.is_global_zero:  # the best weights are the last, and the model has them
                self._write_checkpoint(model, datamodule, source, Path(str(path)))
        record = model.trained.threshold.record
        say(f"threshold {record.value:.6g} on {model.hparams['score']}, from {record.calibrated_on}")
        self.callback_metrics.update(metrics)
