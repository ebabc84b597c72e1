"""The image tables of one study: known training, validation and test images, and unknown sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch

from osr_lightning.data.audit import overlaps, refuse_leaks
from osr_lightning.data.facts import mean_and_std
from osr_lightning.data.image_set import ImageSet, Split, holdout
from osr_lightning.data.sources import load_source
from osr_lightning.data.stream import Images
from osr_lightning.data.table import ImageTable
from osr_lightning.errors import UserError
from osr_lightning.facts import Facts, same_classes

UnknownSets = dict[str, str | dict[str, str]]


class Tables:
    """Loads each table when it is first asked for, and measures the facts of the known images.

    Args:
        known, unknown, calibration_unknown, calibrate_on, allow_overlap, predict, root, image_size, channels,
            mean, std, val_fraction, unknown_fraction, memory_limit, seed: see
            `osr_lightning.data.datamodule.OpenSetDataModule`.

    Attributes:
        train, val, test: the tables that are loaded; the test's are known images, then each unknown set.
        leaks: what the audit of the test found; empty where it found nothing.
    """

    def __init__(
        self,
        *,
        known: str,
        unknown: UnknownSets,
        calibration_unknown: Mapping[str, str],
        calibrate_on: Literal["validation", "test"],
        allow_overlap: bool,
        predict: str | None,
        root: Path,
        image_size: int | None,
        channels: int | None,
        mean: float | list[float] | None,
        std: float | list[float] | None,
        val_fraction: float,
        unknown_fraction: float,
        memory_limit: float,
        seed: int,
    ) -> None:
        self.known = known
        self.unknown, self.groups = flatten(unknown)
        if known in self.unknown:
            raise UserError(f"data.unknown has a set named {known}, like the known source; rename it")
        self.calibration_unknown, self.calibrate_on = dict(calibration_unknown), calibrate_on
        self.allow_overlap, self.predict_source, self.root = allow_overlap, predict, root
        self.image_size, self.channels = image_size, channels
        self.mean, self.std = _numbers(mean), _numbers(std)
        self.val_fraction, self.unknown_fraction = val_fraction, unknown_fraction
        self.memory_limit, self.seed = memory_limit, seed
        self.leaks: list[str] = []
        self.train: ImageTable | None = None
        self.val: ImageTable | None = None
        self.test: ImageTable | None = None
        self._facts: Facts | None = None
        self._sets: dict[tuple[str, str, bool], ImageSet] = {}

    @property
    def facts(self) -> Facts:
        """What the training split says of the known images; measured on first use."""
        if self._facts is None:
            self.load_training()
        assert self._facts is not None
        return self._facts

    def expect(self, facts: Facts) -> None:
        """Take the facts that a trained network was built for, instead of measuring them.

        Raises:
            UserError: where this module was told others.
        """
        given = {"image_size": self.image_size, "channels": self.channels, "mean": self.mean, "std": self.std}
        for name, value in given.items():
            trained = getattr(facts, name)
            if isinstance(value, tuple) and len(value) == 1:
                value *= facts.channels
            if value not in (None, trained):
                raise UserError(
                    f"the checkpoint was trained with data.{name} {_plain(trained)}, not {_plain(value)}; "
                    f"leave data.{name} out, or train again"
                )
        if self._facts not in (None, facts):  # loaded for others
            self._sets.clear()
            self.train = self.val = self.test = None
        self._facts = facts

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sets of the test; a batch's ``source`` indexes them, 0 is the known set."""
        return (self.known, *self.unknown)

    def _load(self, source: str, split: Split, *, as_known: bool = False) -> ImageSet:
        key = (source, split, as_known)
        if key not in self._sets:
            facts = self._facts
            found = load_source(
                source,
                split,
                root=self.root,
                size=self.image_size if facts is None else facts.image_size,
                channels=self.channels if facts is None else facts.channels,
                seed=self.seed,
                as_known=as_known,
                memory_limit=self.memory_limit * 2**30,
            )
            if as_known and facts is not None:
                same_classes(facts.classes, found.classes, f"the known set {source}")
                found = found.with_classes(facts.classes)
            self._sets[key] = found
        return self._sets[key]

    def load_training(self) -> tuple[ImageTable, ImageTable]:
        """The known training and validation images.

        Raises:
            UserError: for a source that does not exist or cannot be read, or too few images.
        """
        if self.train is not None and self.val is not None:
            return self.train, self.val
        pool = self._load(self.known, "train", as_known=True)
        train, val = holdout(pool.labels, self.val_fraction, self.seed)
        if not len(train) or not len(val):
            raise UserError(
                f"data.val_fraction {self.val_fraction} leaves {len(train)} training and {len(val)} "
                f"validation images of the {len(pool.labels)} in {self.known}; choose another share"
            )
        self.train = ImageTable.of([pool.take(train)])
        if self._facts is None:
            self._facts = self._measure(pool.classes, self.train.images)
        self.val = ImageTable.of([pool.take(val)])
        self._sets.clear()  # the two tables have copies of their own
        return self.train, self.val

    def _measure(self, classes: tuple[str, ...], images: Images) -> Facts:
        channels, size = images.shape[1:3]
        mean, std = self.mean, self.std
        if mean is None or std is None:
            measured = mean_and_std(images)
            mean, std = mean or measured[0], std or measured[1]
        mean, std = (value * channels if len(value) == 1 else value for value in (mean, std))
        facts = Facts(classes, channels, size, mean, std)
        facts.check()
        return facts

    def load_test(self) -> ImageTable:
        """Known test images, then each unknown set, all of whose labels are ``K``.

        Raises:
            UserError: where an image that chooses the threshold is among them, unless that is allowed.
        """
        if self.test is not None:
            return self.test
        unknown_label = self.facts.num_classes
        known = self._load(self.known, "test", as_known=True)
        unknown = {name: self._load(source, "test") for name, source in self.unknown.items()}
        test = self._with_unknowns(known, unknown, unknown_label)
        self.leaks = [] if self.calibrate_on == "test" else self._leaks({self.known: known, **unknown})
        refuse_leaks(self.leaks, self.allow_overlap)
        self.test = test
        self._sets.clear()  # the table has a copy of its own
        return self.test

    def load_predict(self) -> ImageTable:
        """The images of ``predict``, without labels (-1), or those of the test."""
        if self.predict_source is None:
            return self.load_test()
        return ImageTable.of([self._load(self.predict_source, "test")], [-1])

    def load_calibration(self) -> ImageTable:
        """The images that choose the threshold: validation plus calibration unknowns, or the test's."""
        if self.calibrate_on == "test":
            return self.load_test()
        _, val = self.load_training()
        if not self.calibration_unknown:
            return val
        unknown = {n: self._load(s, "validation") for n, s in self.calibration_unknown.items()}
        known = ImageSet(val.images, val.labels, self.facts.classes)
        return self._with_unknowns(known, unknown, self.facts.num_classes)

    def _with_unknowns(self, known: ImageSet, unknown: Mapping[str, ImageSet], label: int) -> ImageTable:
        """Known images, then each unknown set (its share drawn by seed), all of label ``K``."""
        parts = [known]
        for found in unknown.values():
            if self.unknown_fraction < 1:
                generator = torch.Generator().manual_seed(self.seed)
                count = max(1, round(self.unknown_fraction * len(found)))
                rows = torch.randperm(len(found), generator=generator)[:count].sort().values
                found = found.take(rows)
            parts.append(found)
        return ImageTable.of(parts, [None, *[label] * len(unknown)])

    def _leaks(self, tested: dict[str, ImageSet]) -> list[str]:
        """The images and sets that both choose the threshold and are tested."""
        held_out: dict[str, Images] = {f"{self.known}'s validation images": self.load_training()[1].images}
        for name, source in self.calibration_unknown.items():
            held_out[f"the calibration set {name}"] = self._load(source, "validation").images
        test = {f"the test set {name}": images.images for name, images in tested.items()}
        shared = sorted({*self.calibration_unknown.values()} & {*self.unknown.values()})
        return [*overlaps(held_out, test), *(f"the unknown set {source} serves both" for source in shared)]

    @property
    def optimistic(self) -> bool:
        """Whether test images take part in choosing the threshold."""
        return self.calibrate_on == "test" or bool(self.leaks)

    def calibrated_on(self, *, unknowns: bool) -> str:
        """Which images calibrate, in words; ``unknowns`` says whether the method uses unknown ones."""
        if self.calibrate_on == "test":
            return "test images: " + " + ".join(self.source_names)
        names = (self.known, *self.calibration_unknown) if unknowns else (self.known,)
        return "validation images: " + " + ".join(names)


def _numbers(value: float | list[float] | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def _plain(value: object) -> object:
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


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
