"""The datamodule: known and unknown image sets, split, mixed and served in whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch import Tensor
from torch.utils.data import DataLoader

from osr_lightning.data.audit import overlaps
from osr_lightning.data.batch import Batch
from osr_lightning.data.sources import ImageSet, Split, holdout, load_source
from osr_lightning.data.stream import Images, chain, select
from osr_lightning.data.table import ImageTable, even_batch_size, whole_batch
from osr_lightning.data.transforms import standardise
from osr_lightning.errors import UserError

UnknownSets = dict[str, str | dict[str, str]]


class OpenSetDataModule(LightningDataModule):
    """Images of the known classes, and unknown images that only the test sees.

    A source is a name (mnist, fashion_mnist, kmnist, emnist_letters, qmnist, cifar10, cifar100, svhn,
    omniglot, mnist_sample, photo_patches), folder:PATH, npz:PATH, noise:gaussian or noise:uniform.

    Args:
        known: source of the known classes; its training split is divided into training and validation.
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
        image_size: height and width of the network's input, in pixels.
        channels: 1 for grey, 3 for colour.
        mean: subtracted from pixel values in [0, 1].
        std: pixel values are divided by it after that.
        val_fraction: share of the known training images kept for validation, in (0, 1).
        unknown_fraction: share of each unknown set to use, drawn by seed, in (0, 1].
        batch_size: images per training step and process.
        eval_batch_size: images per step of validation, test and prediction.
        memory_limit: GiB; a folder whose images would take more is read from disk, batch by batch.
        num_workers: processes that read such a folder.
        seed: of the splits and of the drawn shares.
    """

    def __init__(
        self,
        known: str = "mnist",
        unknown: UnknownSets | None = None,
        calibration_unknown: dict[str, str] | None = None,
        calibrate_on: Literal["validation", "test"] = "validation",
        allow_overlap: bool = False,
        predict: str | None = None,
        root: str = "data",
        image_size: int = 28,
        channels: Literal[1, 3] = 1,
        mean: float = 0.1307,
        std: float = 0.3081,
        val_fraction: float = 0.2,
        unknown_fraction: float = 1.0,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        memory_limit: float = 4.0,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in {
            "image_size": image_size,
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
        }.items():
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}")
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        if not 0 < unknown_fraction <= 1:
            raise UserError(f"data.unknown_fraction must lie in (0, 1], got {unknown_fraction}")
        if num_workers < 0:
            raise UserError(f"data.num_workers must not be below 0, got {num_workers}")
        if not std > 0:
            raise UserError(f"data.std must be above 0, got {std}")
        self.save_hyperparameters()
        self.known = known
        self.calibration_unknown = dict(calibration_unknown or {})
        self.calibrate_on = calibrate_on
        self.allow_overlap = allow_overlap
        self.leaks: list[str] = []
        self.predict_source = predict
        self.root = Path(root)
        self.image_size, self.channels, self.mean, self.std = image_size, channels, mean, std
        self.val_fraction, self.unknown_fraction = val_fraction, unknown_fraction
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.memory_limit, self.num_workers = memory_limit, num_workers
        self.unknown, self.groups = flatten(unknown or {})
        if known in self.unknown:
            raise UserError(f"data.unknown has a set named {known}, like the known source; rename it")
        # while true, prediction runs over the calibration images (OpenSetTrainer.calibrate)
        self.calibrating = False
        self._sets: dict[tuple[str, str, bool], ImageSet] = {}
        self.train_set: ImageTable | None = None
        self.val_set: ImageTable | None = None
        self.test_set: ImageTable | None = None
        self.predict_set: ImageTable | None = None
        self.predict_files: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the ``K`` known classes, once set up."""
        return next(
            s.classes for (source, _, as_known), s in self._sets.items() if as_known and source == self.known
        )

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sets of the test; a batch's ``source`` indexes them, 0 is the known set."""
        return (self.known, *self.unknown)

    def _load(self, source: str, split: Split, *, as_known: bool = False) -> ImageSet:
        key = (source, split, as_known)
        if key not in self._sets:
            self._sets[key] = load_source(
                source,
                split,
                root=self.root,
                size=self.image_size,
                channels=self.channels,
                seed=self.seed,
                as_known=as_known,
                memory_limit=self.memory_limit * 2**30,
            )
        return self._sets[key]

    def prepare_data(self) -> None:
        """Fetch what is missing, on one process only; the others then find it on disk."""
        if self.trainer is not None and self.trainer.state.fn is not None:
            self.setup(self.trainer.state.fn.value)

    def setup(self, stage: str) -> None:
        """Load what ``stage`` (fit, validate, test or predict) needs, once.

        Raises:
            UserError: for a source that does not exist or cannot be read.
        """
        if stage == "predict" and self.calibrating:
            stage = "test" if self.calibrate_on == "test" else "validate"
        if stage in ("fit", "validate") and self.val_set is None:
            pool = self._load(self.known, "train", as_known=True)
            train, val = holdout(pool.labels, self.val_fraction, self.seed)
            if not len(train) or not len(val):
                raise UserError(
                    f"data.val_fraction {self.val_fraction} leaves {len(train)} training and {len(val)} "
                    f"validation images of the {len(pool.labels)} in {self.known}; choose another share"
                )
            self.train_set, self.val_set = (
                ImageTable(select(pool.images, rows), pool.labels[rows], torch.zeros_like(rows))
                for rows in (train, val)
            )
        if stage == "test" or (stage == "predict" and self.predict_source is None):
            self._setup_test()
        if stage == "predict" and self.predict_set is None:
            if self.predict_source is None:
                self.predict_set = self.test_set
            else:
                images = self._load(self.predict_source, "test")
                nothing = torch.full((len(images.images),), -1)
                self.predict_set = ImageTable(images.images, nothing, torch.zeros_like(nothing))
                self.predict_files = images.files

    def _setup_test(self) -> None:
        if self.test_set is None:
            known = self._load(self.known, "test", as_known=True)
            unknown = {name: self._load(source, "test") for name, source in self.unknown.items()}
            test_set = self._with_unknowns(known, unknown)
            self._audit({self.known: known, **unknown})
            self.test_set = test_set
            for source in self.unknown.values():  # the table has a copy of its own
                self._sets.pop((source, "test", False), None)

    def _with_unknowns(self, known: ImageSet, unknown: dict[str, ImageSet]) -> ImageTable:
        """Known images, then each unknown set (its share drawn by seed), all of label ``K``."""
        images, labels, sources = [known.images], [known.labels], [torch.zeros_like(known.labels)]
        for position, unknown_set in enumerate(unknown.values(), start=1):
            chosen = unknown_set.images
            if self.unknown_fraction < 1:
                generator = torch.Generator().manual_seed(self.seed)
                count = max(1, round(self.unknown_fraction * len(chosen)))
                rows = torch.randperm(len(chosen), generator=generator)[:count].sort().values
                chosen = select(chosen, rows)
            images.append(chosen)
            labels.append(torch.full((len(chosen),), len(known.classes)))
            sources.append(torch.full((len(chosen),), position))
        return ImageTable(chain(images), torch.cat(labels), torch.cat(sources))

    def _audit(self, tested: dict[str, ImageSet]) -> None:
        """Stop where images that choose the threshold are among those of the test.

        Raises:
            UserError: unless ``allow_overlap`` is set.
        """
        if self.calibrate_on == "test":
            return  # all of them are, on purpose, and the results say so
        self.setup("validate")
        assert self.val_set is not None
        held_out: dict[str, Images] = {f"{self.known}'s validation images": self.val_set.images}
        for name, source in self.calibration_unknown.items():
            held_out[f"the calibration set {name}"] = self._load(source, "validation").images
        test = {f"the test set {name}": images.images for name, images in tested.items()}
        self.leaks = overlaps(held_out, test)
        for source in sorted({*self.calibration_unknown.values()} & {*self.unknown.values()}):
            self.leaks.append(f"the unknown set {source} serves both")
        if self.leaks and not self.allow_overlap:
            raise UserError(
                f"images that choose the threshold are also tested: {'; '.join(self.leaks)}; use other sets, "
                "or set data.allow_overlap true, which marks the results optimistic"
            )

    @property
    def optimistic(self) -> bool:
        """Whether test images take part in choosing the threshold."""
        return self.calibrate_on == "test" or bool(self.leaks)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled known training images."""
        assert self.train_set is not None
        return self._loader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Known validation images."""
        assert self.val_set is not None
        return self._loader(self.val_set, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Known test images and every unknown set, in that order."""
        assert self.test_set is not None
        return self._loader(self.test_set, self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The images of ``predict``, or the test images; while calibrating, those that calibrate."""
        if self.calibrating:
            return self._calibration_dataloader()
        assert self.predict_set is not None
        return self._loader(self.predict_set, self.eval_batch_size)

    def _calibration_dataloader(self) -> DataLoader[Batch]:
        """The images that choose the threshold: validation plus calibration unknowns, or the test's."""
        if self.calibrate_on == "test":
            return self.test_dataloader()
        assert self.val_set is not None
        if not self.calibration_unknown:
            return self.val_dataloader()
        unknown = {n: self._load(s, "validation") for n, s in self.calibration_unknown.items()}
        known = ImageSet(self.val_set.images, self.val_set.labels, self.class_names)
        return self._loader(self._with_unknowns(known, unknown), self.eval_batch_size)

    def calibrated_on(self, *, unknowns: bool) -> str:
        """Which images calibrate, in words; ``unknowns`` says whether the method uses unknown ones."""
        if self.calibrate_on == "test":
            return "test images: " + " + ".join(self.source_names)
        names = (self.known, *self.calibration_unknown) if unknowns else (self.known,)
        return "validation images: " + " + ".join(names)

    def _loader(self, table: ImageTable, batch_size: int, *, shuffle: bool = False) -> DataLoader[Batch]:
        trainer = self.trainer
        processes = trainer.world_size if trainer is not None else 1
        if len(table) < processes:
            raise UserError(f"{len(table)} images are too few for {processes} processes; use fewer devices")
        sampler = None
        if processes > 1 and not shuffle:
            # Lightning's own sampler would pad the shards with duplicates
            assert trainer is not None
            sampler = UnrepeatedDistributedSampler(
                table, num_replicas=processes, rank=trainer.global_rank, shuffle=False
            )
            batch_size = even_batch_size(len(table), processes, batch_size)
        return DataLoader(
            table,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            collate_fn=whole_batch,
            # images in memory are there sooner than a worker could send them
            num_workers=0 if isinstance(table.images, Tensor) else self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Standardise on the device, so that a quarter of the bytes travels there."""
        return batch._replace(image=standardise(batch.image, self.mean, self.std))


def flatten(unknown: UnknownSets) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Unknown sets by name, and the names in each group."""
    flat: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for name, value in unknown.items():
        members = value if isinstance(value, dict) else {name: value}
        if isinstance(value, dict):
            groups[name] = tuple(value)
        for member, source in members.items():
            if member in flat:
                raise UserError(
                    f"data.unknown names {member} twice; give every unknown set a name of its own"
                )
            flat[member] = source
    return flat, groups
