"""The datamodule: the tables of a study, served in whole batches of raw pixels."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from osr_lightning.data.batch import Batch
from osr_lightning.data.image_table import ImageTable, ImageTables, even_batch_size, per_channel, whole_batch
from osr_lightning.data.resumable_loader import ResumableLoader
from osr_lightning.data_spec import LARGEST, DataSpec
from osr_lightning.errors import UserError, check_range
from osr_lightning.images.ahead import processors
from osr_lightning.option_types import typed

_SETS = "{'others': 'folder:OTHERS'}"
_EXAMPLES = {
    "known": "'folder:MINE'",
    "known_classes": "['cat', 'dog']",
    "unknown": _SETS,
    "calibration_unknown": _SETS,
    "predict": "'folder:MINE'",
}


class OpenSetDataModule(LightningDataModule):
    """Images of the known classes, and unknown images that only the test sees.

    A source is a name (mnist, fashion_mnist, kmnist, emnist_letters, qmnist, cifar10, cifar100, svhn,
    omniglot, tiny_imagenet, cub, aircraft, cars, textures, flowers, pets, food, places365, mnist_sample,
    photo_patches), some of its classes (cifar100:3,4), folder:PATH, npz:PATH, list:FILE, openood:SET,
    noise:gaussian or noise:uniform.

    Args:
        known: source of the known classes; its training split is divided into training and validation, unless
            it is a folder with a val folder beside train.
        known_classes: which of its classes are known; all if not given; names, or places in its order from 0
            up. The others are the source rest, which is the unknown set where no other is given.
        unknown: unknown sets of the test by name; the value is a source, or a mapping again, which is a
            group, as in {near: {letters: emnist_letters}, far: {cifar10: cifar10}}.
        calibration_unknown: unknown images that choose the threshold; name -> source (validation split);
            only the calibration methods max_accuracy and min_cost use them.
        calibrate_on: images that choose the threshold; in the commands calibrate and run; test is the
            original notebook's protocol, whose results are optimistic and marked so.
        allow_overlap: go on if the same images are tested; the leak audit finds images that both choose the
            threshold and are tested, and the results are then marked optimistic.
        predict: source of the images for predict; the test images if not given.
        root: folder of downloaded data sets; torchvision's, which are fetched when missing.
        image_size: height and width in pixels; of the network's input; the known images' own, at most 64, if
            not given.
        channels: 1 for grey, 3 for colour; those of the known images if not given.
        mean: mean of pixels in [0, 1]; one number or one per channel, subtracted from pixel values; measured
            on training images if not given.
        std: standard deviation of pixels; one number or one per channel, by which pixel values are divided
            after that; measured on training images if not given.
        val_fraction: share of training images held out; for validation, of the known ones, in (0, 1).
        unknown_fraction: share of each unknown set to use; in (0, 1], drawn by seed.
        batch_size: images per training step and process; what suits the network if not given.
        eval_batch_size: images per step of a test; of validation and prediction too.
        memory_limit: GiB of images in memory; a folder whose images would take more is read from disk, batch
            by batch.
        num_workers: processes that read images from disk; one per processor, at most 8, if not given; none
            where the cache holds the images.
        seed: seed of the validation split; and of drawn shares.
        test_seed: seed of held-out test images; for a known source without a test split.
    """

    def __init__(
        self,
        known: str = "mnist",
        known_classes: list[str | int] | None = None,
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
        # those of a subclass may have the same names
        own = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        plain = typed("data.", OpenSetDataModule, own, _EXAMPLES)
        super().__init__()
        # what the command line adds would have Lightning parse a checkpoint as a configuration
        self.save_hyperparameters(ignore=["_class_path", "_instantiator"])
        self.hparams.update(plain)
        check_options(self.hparams)
        self.tables = ImageTables(self.hparams)
        self.predict_set: ImageTable | None = None
        self.planned_batch_size = 128
        self.loader_state: dict[str, Any] | None = None  # of a training that goes on

    @property
    def spec(self) -> DataSpec:
        """What the training split says of the known images."""
        return self.tables.spec

    def prepare_data(self) -> None:
        """Fetch what is missing, on one process only; the others then find it on disk."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self._load(self.trainer.state.fn.value)

    def setup(self, stage: str) -> None:
        """Load what ``stage`` (fit, validate, calibrate, test or predict) needs, once, and tell the model.

        Raises:
            UserError: for a source that does not exist or cannot be read, or that does not serve the model.
        """
        self._load(stage)
        model = getattr(self.trainer, "lightning_module", None)
        if model is not None and hasattr(model, "prepare"):
            model.prepare(self, stage)

    def _load(self, stage: str) -> None:
        model = getattr(self.trainer, "lightning_module", None)
        if (use_backbone := getattr(model, "use_backbone", None)) is not None:
            use_backbone(self)
        # a trained model says what its images are like
        if (expected := getattr(model, "expected_spec", None)) is not None:
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
        size = self.hparams["batch_size"] or self.planned_batch_size
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
        # not in setup: a pass that calibrates is one of predict, on other images
        if self.predict_set is None:
            self.predict_set = self.tables.load_predict()
        return self._shared_loader(self.predict_set)

    def fitting_dataloader(self) -> DataLoader[Batch]:
        """All training images in order, for every process alike: what detectors are fitted to."""
        return self._plain_loader(self.tables.load_training()[0], self.hparams["eval_batch_size"])

    def calibration_dataloader(self) -> DataLoader[Batch]:
        """The images that choose the threshold, in order; a trainer deals them out to its processes."""
        return self._plain_loader(self.tables.load_calibration(), self.hparams["eval_batch_size"])

    def _shared_loader(self, table: ImageTable) -> DataLoader[Batch]:
        """Each process's share, every image once."""
        trainer = self.trainer
        processes = trainer.world_size if trainer is not None else 1
        if len(table) < processes:
            raise UserError(f"{len(table)} images are too few for {processes} processes; use fewer devices")
        if processes == 1:
            return self._plain_loader(table, self.hparams["eval_batch_size"])
        # Lightning's own sampler would pad the shards with duplicates
        assert trainer is not None
        sampler = UnrepeatedDistributedSampler(
            table, num_replicas=processes, rank=trainer.global_rank, shuffle=False
        )
        batch_size = even_batch_size(len(table), processes, self.hparams["eval_batch_size"])
        return self._plain_loader(table, batch_size, sampler=sampler)

    def _plain_loader(
        self,
        table: ImageTable,
        batch_size: int,
        kind: type[DataLoader[Batch]] = DataLoader,
        **options: Any,  # noqa: ANN401
    ) -> DataLoader[Batch]:
        workers = self.hparams["num_workers"]
        if isinstance(table.images, Tensor):  # they are there sooner than a worker could send them
            workers = 0
        elif workers is None:
            workers = 0 if getattr(table.images, "quick", False) else processors(8)
        return kind(
            table,
            batch_size=batch_size,
            collate_fn=whole_batch,
            num_workers=workers,
            worker_init_fn=_leave_interrupts,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


def _leave_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to workers too, to the process that will end them.

    Its handler, which they would have from it, would end them first, and torch would raise an error there.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def datamodule_of(trainer: object) -> OpenSetDataModule | None:
    """The datamodule that a trainer is given, if it is one of these."""
    found = getattr(trainer, "datamodule", None)
    return found if isinstance(found, OpenSetDataModule) else None


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options of a datamodule that are out of range.

    Args:
        options: of `OpenSetDataModule`, which explains them.

    Raises:
        UserError: naming the first that is.
    """
    require = partial(check_range, "data.", options)
    for name in ("batch_size", "eval_batch_size"):
        require(name, lambda value: value >= 1, "be at least 1")
    require("num_workers", lambda value: value >= 0, "not be below 0")
    require("image_size", lambda value: 1 <= value <= LARGEST, f"lie between 1 and {LARGEST}")
    require("val_fraction", lambda value: 0 < value < 1, "lie between 0 and 1")
    require("unknown_fraction", lambda value: 0 < value <= 1, "lie in (0, 1]")
    std = per_channel(options["std"], 1)
    if std is not None and not min(std, default=0) > 0:
        raise UserError(f"data.std must be above 0, got {list(std)}")
