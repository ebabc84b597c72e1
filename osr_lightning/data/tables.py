"""The image tables of one study: known training, validation and test images, and unknown sets."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from osr_lightning.data.audit import Named, Seen, overlaps, packed_digests, refuse_leaks
from osr_lightning.data.facts import mean_and_std
from osr_lightning.data.image_set import ImageSet, Split, resolve
from osr_lightning.data.selection import REST, Selection, shown
from osr_lightning.data.sources import load_source
from osr_lightning.data.splits import holdout, holdout_by_content
from osr_lightning.data.stream import Images
from osr_lightning.data.table import ImageTable
from osr_lightning.data.torchvision_sets import TORCHVISION_SETS
from osr_lightning.errors import UserError
from osr_lightning.facts import Facts, same_classes

PUBLISHED_COPIES = 0.001  # share of the test images


class Tables:
    """Loads each table when it is first asked for, and measures the facts of the known images.

    Args:
        selection: which images, and how they are divided.

    Attributes:
        train, val, test: the tables that are loaded; the test's are known images, then each unknown set.
        leaks: what the audit of the test found; empty where it found nothing.
        note: what a user should know of the known images; or empty.
    """

    def __init__(self, selection: Selection) -> None:
        self.selection = selection
        self.leaks: list[str] = []
        self.note = ""
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
        for name in ("image_size", "channels", "mean", "std"):
            value, trained = getattr(self.selection, name), getattr(facts, name)
            if isinstance(value, tuple) and len(value) == 1:
                value *= facts.channels
            if value not in (None, trained):
                raise UserError(
                    f"the checkpoint was trained with data.{name} {shown(trained)}, not {shown(value)}; "
                    f"leave data.{name} out, or train again"
                )
        if self._facts not in (None, facts):  # loaded for others
            self._sets.clear()
            self.train = self.val = self.test = None
        self._facts = facts

    def _load(self, source: str, split: Split, *, as_known: bool = False) -> ImageSet:
        key = (source, split, as_known)
        if key not in self._sets:
            facts = self._facts
            found = load_source(
                source,
                split,
                root=self.selection.root,
                size=self.selection.image_size if facts is None else facts.image_size,
                channels=self.selection.channels if facts is None else facts.channels,
                seed=self.selection.seed,
                test_seed=self.selection.test_seed,
                as_known=as_known,
                memory_limit=self.selection.memory_limit * 2**30,
            )
            self._sets[key] = found
            if as_known and split == "train":
                self.note = found.note
        return self._sets[key]

    def _load_known(self, split: Split) -> ImageSet:
        """The known images, their labels in the order of the facts' classes."""
        source, wanted = self.selection.known, self.selection.known_classes
        found = self._load(source, split, as_known=True)
        if wanted is not None:
            found = found.only(resolve(wanted, found.classes, source))
        if self._facts is not None:
            same_classes(self._facts.classes, found.classes, f"the known set {source}")
            found = found.with_classes(self._facts.classes)
        return found

    def _load_unknown(self, source: str, split: Split) -> ImageSet:
        if source != REST:
            return self._load(source, split)
        known, wanted = self.selection.known, self.selection.known_classes
        found = self._load(known, split, as_known=True)
        if wanted is None:
            raise UserError(
                f"the source {REST} is what data.known_classes leaves; give that, or another source"
            )
        others = [name for name in found.classes if name not in resolve(wanted, found.classes, known)]
        if not others:
            raise UserError(
                f"data.known_classes names all classes of {known}, so that none is left as {REST}"
            )
        return found.only(others)

    def seen(self, before: Seen | None) -> Seen:
        """Digests of the training and validation images, and of those that were trained on ``before``."""
        train, val = self.load_training()
        now = Seen(packed_digests(train.images), packed_digests(val.images))
        return now if before is None else now.trained_on_too(before.train)

    def refuse_seen(self, seen: Seen | None, stage: str) -> None:
        """Stop where images that are held out for ``stage`` made the checkpoint, whatever they are called.

        Raises:
            UserError: unless that is allowed; then the results are optimistic.
        """
        if seen is None:
            return
        images = self.load_test() if stage == "test" else self.load_calibration()
        whose = "the test images" if stage == "test" else f"{self.selection.known}'s held-out images"
        thresholds = stage == "test" and self.selection.calibrate_on != "test"
        # published sets may hold a few copies across their own splits, which every user of them lives with
        few = PUBLISHED_COPIES * len(images) if self.selection.known in TORCHVISION_SETS else 0
        shared = seen.among(images, whose, calibration=thresholds)
        found = [phrase for phrase, count in shared.items() if count > few and phrase not in self.leaks]
        refuse_leaks(found, self.selection.allow_overlap)
        self.leaks += found

    def load_training(self) -> tuple[ImageTable, ImageTable]:
        """The known training and validation images.

        Raises:
            UserError: for a source that does not exist or cannot be read, or too few images.
        """
        if self.train is not None and self.val is not None:
            return self.train, self.val
        pool = self._load_known("train")
        fraction = self.selection.val_fraction
        if pool.keys:
            salt = f"validation {self.selection.seed}"
            train, val = holdout_by_content(pool.keys, pool.labels, fraction, salt)
        else:
            train, val = holdout(pool.labels, fraction, self.selection.seed)
        if not len(train) or not len(val):
            raise UserError(
                f"data.val_fraction {fraction} leaves {len(train)} training and {len(val)} "
                f"validation images of the {len(pool.labels)} in {self.selection.known}; choose another share"
            )
        self.train = ImageTable.of([pool.take(train)])
        if self._facts is None:
            self._facts = self._measure(pool.classes, self.train.images)
        self.val = ImageTable.of([pool.take(val)])
        self._sets.clear()  # the two tables have copies of their own
        return self.train, self.val

    def _measure(self, classes: tuple[str, ...], images: Images) -> Facts:
        channels, size = images.shape[1:3]
        mean, std = self.selection.mean, self.selection.std
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
        known = self._load_known("test")
        unknown = {name: self._load_unknown(source, "test") for name, source in self.selection.sets.items()}
        test = self._with_unknowns(known, unknown, unknown_label)
        if self.selection.calibrate_on != "test":  # else all are, on purpose, and the results say so
            self.leaks = self._leaks({self.selection.known: known, **unknown})
        refuse_leaks(self.leaks, self.selection.allow_overlap)
        self.test = test
        self._sets.clear()  # the table has a copy of its own
        return self.test

    def load_predict(self) -> ImageTable:
        """The images of ``predict``, without labels (-1), or those of the test."""
        if self.selection.predict is None:
            return self.load_test()
        return ImageTable.of([self._load(self.selection.predict, "test")], [-1])

    def load_calibration(self) -> ImageTable:
        """The images that choose the threshold: validation plus calibration unknowns, or the test's."""
        if self.selection.calibrate_on == "test":
            return self.load_test()
        _, val = self.load_training()
        if not self.selection.calibration_unknown:
            return val
        unknown = {
            n: self._load_unknown(s, "validation") for n, s in self.selection.calibration_unknown.items()
        }
        known = ImageSet(val.images, val.labels, self.facts.classes)
        return self._with_unknowns(known, unknown, self.facts.num_classes)

    def _with_unknowns(self, known: ImageSet, unknown: Mapping[str, ImageSet], label: int) -> ImageTable:
        """Known images, then each unknown set (its share drawn by seed), all of label ``K``."""
        parts = [known]
        for found in unknown.values():
            if self.selection.unknown_fraction < 1:
                generator = torch.Generator().manual_seed(self.selection.seed)
                count = max(1, round(self.selection.unknown_fraction * len(found)))
                rows = torch.randperm(len(found), generator=generator)[:count].sort().values
                found = found.take(rows)
            parts.append(found)
        return ImageTable.of(parts, [None, *[label] * len(unknown)])

    def _leaks(self, tested: dict[str, ImageSet]) -> list[str]:
        """The images and sets that train or choose the threshold and are tested as well."""
        known, (train, val) = self.selection.known, self.load_training()
        held_out: dict[str, Named] = {f"{known}'s validation images": val}
        if known not in TORCHVISION_SETS:
            held_out[f"{known}'s training images"] = train
        for name, source in self.selection.calibration_unknown.items():
            held_out[f"the calibration set {name}"] = self._load_unknown(source, "validation")
        test = {f"the test set {name}": images for name, images in tested.items()}
        shared = sorted({*self.selection.calibration_unknown.values()} & {*self.selection.sets.values()})
        return [*overlaps(held_out, test), *(f"the unknown set {source} serves both" for source in shared)]

    @property
    def optimistic(self) -> bool:
        """Whether test images take part in choosing the threshold."""
        return self.selection.calibrate_on == "test" or bool(self.leaks)
