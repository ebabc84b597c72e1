"""What a search maximises, measured on validation images after each epoch, and the callback that prunes."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import NamedTuple

import numpy as np
import optuna
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.image_table import ImageTable
from osr_lightning.errors import Diverged
from osr_lightning.evaluation.measures.ranking import auroc, openauc
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.studies.search.generated import generate
from osr_lightning.training.calibration import fit_detectors, references
from osr_lightning.training.module import OpenSetClassifier


class SearchData(OpenSetDataModule):
    """Images whose validation has unknown ones too: ``calibration_unknown``, or generated where none are."""

    @cached_property
    def judged(self) -> ImageTable:
        """Known validation images, then unknown ones, all of label ``K``."""
        tables = self.tables
        _, val = tables.load_training()
        if tables.calibration_unknown:
            return tables.load_calibration()
        known = ImageSet(val.images, val.labels, tables.spec.classes)
        unknown = generate(val, tables.options["seed"], tables.extractor).values()
        return ImageTable.of([known, *unknown], [None, *[tables.spec.num_classes] * len(unknown)])

    def val_dataloader(self) -> DataLoader[Batch]:
        """Known and unknown validation images; loss, accuracy and threshold are of the known ones."""
        return self._shared_loader(self.judged)


class Judgement(NamedTuple):
    """How good weights are on validation images, each in [0, 1].

    Attributes:
        openauc: the objective.
        accuracy: share of known images whose class is right, before any rejection.
        auroc: of the deciding score.
        epoch: whose weights these are, from 0.
    """

    openauc: float
    accuracy: float
    auroc: float
    epoch: int


def judge(
    rows: dict[str, Tensor], score: str, num_classes: int, epoch: int, taken: Collection[int] = ()
) -> Judgement:
    """Judge the per-image results of known and unknown validation images.

    Args:
        rows: of `OpenSetClassifier.classify`; unknown images have the label ``K``.
        score: the one that decides.
        num_classes: ``K``.
        epoch: whose weights these are.
        taken: rows of the known images that the score was fitted to: they would rank too well.

    Raises:
        Diverged: where a score is NaN.
    """
    values, label = rows[f"score/{score}"].numpy().astype(np.float64), rows["label"].numpy()
    if np.isnan(values).any():
        raise Diverged(f"the score {score} is NaN for {int(np.isnan(values).sum())} of {len(values)} images")
    predicted = rows["predicted_class"].numpy()
    known = label < num_classes
    judged = np.array([row not in taken for row in rows["row"].tolist()], dtype=bool)
    outcomes = Outcomes(
        label[judged], predicted[judged], values[judged], np.zeros(judged.sum(), bool), num_classes
    )
    ranked, right = auroc(outcomes), openauc(outcomes)
    assert ranked is not None
    assert right is not None
    return Judgement(right, float((predicted == label)[known].mean()), ranked, epoch)


class Judge(Callback):
    """Judges each epoch's weights, tells the trial, and ends a training that the trial's pruner gives up.

    ``best`` is the judgement of the weights that ``run`` would test: those of the best validation accuracy,
    of equal ones the first.

    Args:
        trial: whose values are trained with.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.best: Judgement | None = None
        self.epochs = 0
        self.finished = False  # is the training at its end?
        self._taken: set[int] = set()  # rows of the images that the score was fitted to

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the score, where it is one to be fitted."""
        assert isinstance(pl_module, OpenSetClassifier)
        if pl_module.hparams["score"] in DETECTORS and not trainer.sanity_checking:
            pl_module.refuse_nan_weights()
            data: OpenSetDataModule = trainer.datamodule  # type: ignore[attr-defined]
            held_out, taken = references(data.tables, pl_module.trained, None)
            fit_detectors(pl_module.trained, data.fitting_dataloader(), held_out)
            self._taken = set() if taken is None else set(taken.nonzero().flatten().tolist())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, report, and prune.

        Raises:
            TrialPruned: where the pruner sees no hope.
        """
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, OpenSetClassifier)
        score, epoch = pl_module.hparams["score"], trainer.current_epoch
        now = judge(pl_module.rows, score, pl_module.num_classes, epoch, self._taken)
        if self.best is None or now.accuracy > self.best.accuracy:
            self.best = now
        for logger in trainer.loggers:
            logger.log_metrics({"val/openauc": now.openauc, "val/auroc": now.auroc}, trainer.global_step)
        self.epochs += 1
        self.trial.report(now.openauc, self.epochs)
        # a schedule that rises first would lose every comparison before
        if 2 * self.epochs > (trainer.max_epochs or 0) and self.trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {self.epochs}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The trial is complete, even where a signal ends the process now."""
        self.finished = True
        self._log(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A pruned trial has its row in TensorBoard's HParams as well."""
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self.best is not None:
                numbers = {f"search/{name}": value for name, value in self.best._asdict().items()}
                logger.log_hyperparams(dict(self.trial.params), numbers)
                logger.save()
