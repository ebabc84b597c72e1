"""The datamodule: the tables of a study, served in whole batches of raw pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from osr_lightning.data.batch import Batch
from osr_lightning.data.named import paths_of, remember
from osr_lightning.data.resumable import ResumableLoader
from osr_lightning.data.selection import REST, Selection, numbers
from osr_lightning.data.stream import Images
from osr_lightning.data.table import ImageTable, even_batch_size, whole_batch
from osr_lightning.data.tables import Tables
from osr_lightning.errors import UserError
from osr_lightning.facts import Facts


class OpenSetDataModule(LightningDataModule):
    """Images of the known classes, and unknown images that only the test sees.

    A source is a name (mnist, fashion_mnist, kmnist, emnist_letters, qmnist, cifar10, cifar100, svhn,
    omniglot, mnist_sample, photo_patches), folder:PATH, npz:PATH, noise:gaussian or noise:uniform.

    Args:
        known: source of the known classes; its training split is divided into training and validation.
        known_classes: names or numbers of those classes of the known source that are known; the others are
            the source rest, which is the unknown set where no other is given.
        unknown: name -> source of each unknown set of the test; a nested mapping is a group, as in
            {near: {letters: emnist_letters}, far: {cifar10: cifar10}}.
        calibration_unknown: name -> source of unknown images that may choose the threshold (validation
            split); only the calibration methods max_accuracy and min_cost use them.
        calibrate_on: which images the command calibrate (and run) takes; test is the original
            notebook's protocol, whose results are optimistic and marked so.
        allow_overlap: go on where the leak audit finds images that both choose the threshold and are
            tested; the results are then marked optimistic.
        predict: source of the images for the command predict; the test images if not given.
        root: folder of torchvision's data sets, downloaded there when missing.
        image_size: height and width of the network's input, in pixels; the known images' own if not given,
            at most 64.
        channels: 1 for grey, 3 for colour; what the known images are if not given.
        mean: subtracted from pixel values in [0, 1], one number or one per channel; measured on the
            training images if not given.
        std: pixel values are divided by it after that; measured as well if not given.
        val_fraction: share of the known training images kept for validation, in (0, 1).
        unknown_fraction: share of each unknown set to use, drawn by seed, in (0, 1].
        batch_size: images per training step and process; what suits the network if not given.
        eval_batch_size: images per step of validation, test and prediction.
        memory_limit: GiB; a folder whose images would take more is read from disk, batch by batch.
        num_workers: processes that read such a folder; if not given, one per processor, at most 8, or none
            where the cache holds its images.
        seed: of the validation split and of the drawn shares.
        test_seed: of the test images that are held out where the known source has no test split.
    """

    def __init__(
        self,
        known: str = "mnist",
        known_classes: list[int | str] | None = None,
        unknown: dict[str, str | dict[str, str]] | None = None,
        calibration_unknown: dict[str, str] | None = None,
        calibrate_on: Literal["validation", "test"] = "validation",
        allow_overlap: bool = False,
        predict: str | None = None,
        root: str = "data",
        image_size: int | None = None,
        channels: Literal[1, 3] | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        val_fraction: float = 0.2,
        unknown_fraction: float = 1.0,
        batch_size: int | None = None,
        eval_batch_size: int = 512,
        memory_limit: float = 4.0,
        num_workers: int | None = None,
        seed: int = 0,
        test_seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"data.num_workers must not be below 0, got {num_workers}")
        self.save_hyperparameters()
        self.predict_set: ImageTable | None = None
        self.tables = Tables(
            Selection(
                known=known,
                known_classes=known_classes,
                unknown={REST: REST} if unknown is None and known_classes is not None else unknown or {},
                calibration_unknown=calibration_unknown or {},
                calibrate_on=calibrate_on,
                allow_overlap=allow_overlap,
                predict=predict,
                root=Path(root),
                image_size=image_size,
                channels=channels,
                mean=numbers(mean),
                std=numbers(std),
                val_fraction=val_fraction,
                unknown_fraction=unknown_fraction,
                memory_limit=memory_limit,
                seed=seed,
                test_seed=test_seed,
            )
        )
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = num_workers
        self.planned_batch_size = 128
        self.loader_state: dict[str, Any] | None = None  # of a training that goes on

    @property
    def facts(self) -> Facts:
        """What the training split says of the known images."""
        return self.tables.facts

    def prepare_data(self) -> None:
        """Fetch what is missing, on one process only; the others then find it on disk."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self.setup(self.trainer.state.fn.value)

    def setup(self, stage: str) -> None:
        """Load what ``stage`` (fit, validate, calibrate, test or predict) needs, once.

        Raises:
            UserError: for a source that does not exist or cannot be read.
        """
        if self.trainer is None or self.trainer.is_global_zero:
            remember(path for name, value in self.hparams.items() for path in paths_of(name, value))
        # a trained model says what its images are like
        expected = getattr(getattr(self.trainer, "lightning_module", None), "expected_facts", lambda: None)()
        if expected is not None:
            self.tables.expect(expected)
        if stage in ("fit", "validate"):
            self.tables.load_training()
        elif stage == "calibrate":
            self.tables.load_calibration()
        elif stage == "test":
            self.tables.load_test()
        elif self.trainer is None or self.trainer.state.fn is None:
            self.predict_dataloader()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled known training images."""
        size = self.batch_size or self.planned_batch_size
        table, trainer = self.tables.load_training()[0], self.trainer
        options: dict[str, Any] = {"shuffle": True}
        if trainer is not None and trainer.world_size > 1:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            options = {
                "sampler": DistributedSampler(table, trainer.world_size, trainer.global_rank, seed=seed)
            }
        if trainer is not None:
            options["epoch_ends"] = lambda: trainer.num_training_batches
        loader = self._plain_loader(table, size, ResumableLoader, **options)
        state, self.loader_state = self.loader_state, None
        if state is not None and isinstance(loader, ResumableLoader):
            loader.load_state_dict(state)
        return loader

    def val_dataloader(self) -> DataLoader[Batch]:
        """Known validation images."""
        return self._shared_loader(self.tables.load_training()[1])

    def test_dataloader(self) -> DataLoader[Batch]:
        """Known test images and every unknown set, in that order."""
        return self._shared_loader(self.tables.load_test())

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The images of ``predict``, or the test images."""
        if (
            self.predict_set is None
        ):  # not in setup: a pass that calibrates is one of predict, on other images
            self.predict_set = self.tables.load_predict()
        return self._shared_loader(self.predict_set)

    def fitting_dataloader(self) -> DataLoader[Batch]:
        """All training images in order, for every process alike: what detectors are fitted to."""
        return self._plain_loader(self.tables.load_training()[0], self.eval_batch_size)

    def calibration_dataloader(self) -> DataLoader[Batch]:
        """The images that choose the threshold, in order; a trainer deals them out to its processes."""
        return self._plain_loader(self.tables.load_calibration(), self.eval_batch_size)

    def _shared_loader(self, table: ImageTable) -> DataLoader[Batch]:
        """Each process's share, every image once."""
        trainer = self.trainer
        processes = trainer.world_size if trainer is not None else 1
        if len(table) < processes:
            raise UserError(f"{len(table)} images are too few for {processes} processes; use fewer devices")
        if processes == 1:
            return self._plain_loader(table, self.eval_batch_size)
        # Lightning's own sampler would pad the shards with duplicates
        assert trainer is not None
        sampler = UnrepeatedDistributedSampler(
            table, num_replicas=processes, rank=trainer.global_rank, shuffle=False
        )
        batch_size = even_batch_size(len(table), processes, self.eval_batch_size)
        return self._plain_loader(table, batch_size, sampler=sampler)

    def _workers(self, images: Images) -> int:
        if isinstance(images, Tensor):  # they are there sooner than a worker could send them
            return 0
        if self.num_workers is not None:
            return self.num_workers
        return 0 if getattr(images, "quick", False) else min(8, os.cpu_count() or 1)

    def _plain_loader(
        self,
        table: ImageTable,
        batch_size: int,
        kind: type[DataLoader[Batch]] = DataLoader,
        **options: Any,  # noqa: ANN401
    ) -> DataLoader[Batch]:
        return kind(
            table,
            batch_size=batch_size,
            collate_fn=whole_batch,
            num_workers=self._workers(table.images),
            pin_memory=torch.cuda.is_available(),
            **options,
        )
