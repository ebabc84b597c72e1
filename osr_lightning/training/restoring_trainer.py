"""A trainer that builds the model which a checkpoint holds, before its data are set up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from osr_lightning import checkpoint as checkpoints
from osr_lightning.training import restoring
from osr_lightning.training.base import OpenSetClassifier
from osr_lightning.training.finishing import write_rows


class RestoringTrainer(Trainer):
    """Lightning's Trainer; `validate`, `test` and `predict` take a checkpoint as it is.

    Attributes:
        trust_checkpoint: whether a checkpoint may name code of others.
    """

    trust_checkpoint = False

    def validate(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,  # noqa: ANN401
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        **kwargs: Any,  # noqa: ANN401 - what further versions of Lightning add
    ) -> Any:  # noqa: ANN401
        """Loss and accuracy on the validation images.

        Args:
            model: the classifier.
            dataloaders: batches, instead of a datamodule.
            ckpt_path: the checkpoint to validate.
            verbose: whether to print the results.
            datamodule: the images.
            kwargs: see lightning.pytorch.Trainer.validate.
        """
        self.build(model, ckpt_path)
        return super().validate(model, dataloaders, ckpt_path, verbose, datamodule, **kwargs)

    def test(  # type: ignore[override]
        self,
        model: LightningModule | None = None,
        dataloaders: Any | LightningDataModule | None = None,  # noqa: ANN401
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        **kwargs: Any,  # noqa: ANN401 - what further versions of Lightning add
    ) -> Any:  # noqa: ANN401
        """Judge a checkpoint on known and unknown images, and write the complete run folder.

        Args:
            model: the classifier.
            dataloaders: batches, instead of a datamodule.
            ckpt_path: the checkpoint to test.
            verbose: whether to print what was logged.
            datamodule: the images.
            kwargs: see lightning.pytorch.Trainer.test.
        """
        self.build(model, ckpt_path)
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, **kwargs)

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
        self.build(model, ckpt_path)
        batches = super().predict(model, dataloaders, datamodule, None, ckpt_path, **kwargs)
        write_rows(self, batches, datamodule)
        return batches if return_predictions in (None, True) else None

    def build(self, model: LightningModule | None, ckpt_path: str | Path | None) -> None:
        """Before Lightning sets up the data: build the model that the checkpoint holds, for its facts."""
        if not isinstance(model, OpenSetClassifier) or ckpt_path is None or not Path(ckpt_path).is_file():
            return  # a word, as best, names one that was written here
        checkpoint = checkpoints.read(ckpt_path)
        if model.recogniser is None:
            restoring.restore(model, checkpoint, trust=self.trust_checkpoint)
