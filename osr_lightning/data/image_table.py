"""The images of one study as data sets: known training, validation and test images, and unknown sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain as chain_items
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from osr_lightning.data.batch import Batch
from osr_lightning.data.features import FeatureExtractor
from osr_lightning.data.image_set import ImageSet, Split, resolve
from osr_lightning.data.leaks import (
    ImageDigests,
    NamedImages,
    overlaps,
    packed_digests,
    pixel_digests,
    refuse_leaks,
)
from osr_lightning.data.measure_spec import mean_and_std
from osr_lightning.data.sources import class_names, is_published, is_small, load_source, refuse_missing
from osr_lightning.data.stream import Images, chain, kept
from osr_lightning.data_spec import DataSpec, PixelFormat, composed, refuse_unknown, same_classes
from osr_lightning.errors import UserError

UnknownSets = Mapping[str, "str | Mapping[str, str]"]
REST = "rest"  # the source of the images of those classes that are not among the known ones
PUBLISHED_COPIES = 0.001  # share of the test images


class ImageTable(Dataset[Batch]):
    """Several image sets end to end, held as ``uint8`` or as features, and served in whole batches.

    Args:
        images: ``(N, C, H, W)`` uint8, in memory or streamed from disk.
        labels: ``(N,)`` int64.
        sources: ``(N,)`` int64, which set each image belongs to.
        files: ``N`` names of the files they were read from, empty where there is none; or none at all.
    """

    def __init__(self, images: Images, labels: Tensor, sources: Tensor, files: Sequence[str] = ()) -> None:
        self.images, self.labels, self.sources, self.files = images, labels, sources, files
        self.features = kept(images, "features")

    @classmethod
    def of(cls, sets: Sequence[ImageSet], labels: Sequence[int | None] = (None,)) -> ImageTable:
        """One table of several sets, in that order.

        Args:
            sets: the images.
            labels: per set the label of all its images; None: they keep their own.
        """
        sizes = [len(found) for found in sets]
        chosen = [
            found.labels if label is None else torch.full((len(found),), label)
            for found, label in zip(sets, labels, strict=True)
        ]
        sources = torch.repeat_interleave(torch.arange(len(sets)), torch.tensor(sizes))
        files = [found.files or ("",) * len(found) for found in sets]
        named = tuple(chain_items(*files)) if any(found.files for found in sets) else ()
        return cls(chain([found.images for found in sets]), torch.cat(chosen), sources, named)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """One image as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """One gather per field for a whole batch, instead of one Python call per image."""
        row = torch.tensor(indices)
        images = self.images if self.features is None else self.features
        # index_select is several times quicker than indexing
        image = images.index_select(0, row) if isinstance(images, Tensor) else images[row]
        return Batch(image, self.labels.index_select(0, row), self.sources.index_select(0, row), row)


def whole_batch(batch: Any) -> Any:  # noqa: ANN401 - `__getitems__` gives a batch where a list is expected
    """The collate function of batches that are whole already."""
    return batch


def even_batch_size(images: int, processes: int, batch_size: int) -> int:
    """The smallest size from ``batch_size`` on that gives every process equally many batches.

    Unpadded shards may differ by one image, hence by one batch; DDP synchronises the network's buffers
    at each validation batch of a fit, so the process with one batch more would wait for ever.
    """
    smaller, larger = images // processes, -(-images // processes)
    while -(-smaller // batch_size) != -(-larger // batch_size):
        batch_size += 1
    return batch_size


class ImageTables:
    """Loads each table when it is first asked for, and measures the data spec of the known images.

    Args:
        options: which images, and how they are divided: those of
            `osr_lightning.data.datamodule.OpenSetDataModule`, which explains them.

    Attributes:
        sets: name -> source of each unknown set of the test.
        groups: group -> names of its unknown sets, where they are given in groups.
        calibration_unknown: name -> source of the unknown images that may choose the threshold.
        train, val, test: the tables that are loaded; the test's are known images, then each unknown set.
        leaks: what the audit of the test found; empty where it found nothing.
        notes: what a user should know of the known images, in sentences.
        left_out: source -> what is in its folder and not used, counted and named.
        download: whether what is missing may be downloaded into ``root``.
        pixel_format: what a backbone wants of images; None: what suits the known ones.
        extractor: a frozen backbone, whose features are then served in place of pixels; None without one.

    Raises:
        UserError: where two unknown sets have one name.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        known_alone = options["known_classes"] is not None and options["unknown"] is None
        self.sets, self.groups = flatten(
            "data.unknown", {REST: REST} if known_alone else options["unknown"] or {}
        )
        if options["known"] in self.sets:
            raise UserError(
                f"data.unknown has a set named {options['known']}, like the known source; rename it"
            )
        self.calibration_unknown, _ = flatten(
            "data.calibration_unknown", options["calibration_unknown"] or {}
        )
        self.leaks: list[str] = []
        self.notes: list[str] = []
        self.left_out: dict[str, list[str]] = {}
        self.download = True
        self.pixel_format: PixelFormat | None = None
        self.extractor: FeatureExtractor | None = None
        self._own_val = False
        self.train: ImageTable | None = None
        self.val: ImageTable | None = None
        self.test: ImageTable | None = None
        self._spec: DataSpec | None = None
        self._sets: dict[tuple[str, str, bool], ImageSet] = {}

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sets of the test; a batch's ``source`` indexes them, 0 is the known set."""
        return (self.options["known"], *self.sets)

    def calibrated_on(self, *, unknowns: bool) -> str:
        """Which images calibrate, in words; ``unknowns`` says whether the method uses unknown ones."""
        if self.options["calibrate_on"] == "test":
            return "test images: " + " + ".join(self.source_names)
        names = (self.options["known"], *self.calibration_unknown) if unknowns else (self.options["known"],)
        return "validation images: " + " + ".join(names)

    @property
    def share_of_calibration(self) -> str:
        """What to raise, in words, so that more known images calibrate."""
        if self.options["calibrate_on"] == "test":
            return "the number of test images"
        return "the number of images in its validation folder" if self._own_val else "data.val_fraction"

    @property
    def spec(self) -> DataSpec:
        """What the training split says of the known images; measured on first use."""
        if self._spec is None:
            self.load_training()
        assert self._spec is not None
        return self._spec

    def known_names(self) -> tuple[str, ...]:
        """The names of the known classes, in order; a folder's images are not read for it.

        Raises:
            UserError: where the source or one of its classes is missing.
        """
        source, wanted = self.options["known"], self.options["known_classes"]
        names = class_names(source, root=Path(self.options["root"]), download=self.download)
        return names if wanted is None else resolve(wanted, names, source)

    def expect(self, spec: DataSpec) -> None:
        """Take the data spec that a trained network was built for, instead of measuring one.

        Raises:
            UserError: where this module was told others.
        """
        for name in ("image_size", "channels", "mean", "std"):
            value, trained = self.options[name], getattr(spec, name)
            if isinstance(trained, tuple):
                value = per_channel(value, spec.channels)
            if value not in (None, trained):
                found, given = (_one_number(v) for v in (trained, value))
                raise UserError(
                    f"the checkpoint was trained with data.{name} {found}, not {given}; leave data.{name} "
                    "out, or train again"
                )
        if self._spec not in (None, spec):  # loaded for others
            self._forget()
        self._spec = spec
        if spec.resize is not None or self.pixel_format is not None:
            self.pixel_format = spec.pixel_format

    def _forget(self) -> None:
        self._sets.clear()
        self.train = self.val = self.test = None

    def wanted_format(self, published: PixelFormat) -> PixelFormat:
        """What pretrained weights want of an image, with what the user says in its place.

        Small pictures are enlarged whole, linearly: weights want the border cut off as photographs have their
        subject in the middle, and of 32 pixels every one counts.

        Raises:
            UserError: where that cannot be had.
        """
        if self.options["channels"] not in (None, published.channels):
            turned = "colours turn grey" if published.channels == 1 else "grey images are repeated"
            raise UserError(
                f"data.channels {self.options['channels']}: the backbone takes {published.channels}; leave "
                f"data.channels out, and {turned}"
            )
        size = self.options["image_size"]
        wanted = published if size is None else published.at(size)
        root = Path(self.options["root"])
        if wanted.resize is not None and is_small(self.options["known"], root, download=self.download):
            wanted = wanted._replace(resize=None)
        mean, std = (per_channel(self.options[name], wanted.channels) for name in ("mean", "std"))
        return wanted._replace(mean=mean or wanted.mean, std=std or wanted.std)

    def use_backbone(self, wanted: PixelFormat, extractor: FeatureExtractor | None) -> None:
        """Bring images to what a backbone wants, and serve its features where it is frozen."""
        loaded = self.train is not None or self.test is not None
        if loaded and (self.pixel_format, self.extractor) != (wanted, extractor):
            self._forget()
        self.pixel_format, self.extractor = wanted, extractor

    def _load(self, source: str, split: Split, *, as_known: bool = False) -> ImageSet:
        key = (source, split, as_known)
        if key not in self._sets:
            spec = self._spec
            found = load_source(
                source,
                split,
                root=Path(self.options["root"]),
                download=self.download,
                size=self.options["image_size"] if spec is None else spec.image_size,
                channels=self.options["channels"] if spec is None else spec.channels,
                pixel_format=self.pixel_format,
                extractor=self.extractor,
                seed=self.options["seed"],
                test_seed=self.options["test_seed"],
                as_known=as_known,
                memory_limit=self.options["memory_limit"] * 2**30,
                check=self._known_classes if as_known else lambda classes: None,
            )
            self._sets[key] = found
            if as_known and split == "train" and found.note and found.note not in self.notes:
                self.notes.append(found.note)
            if found.left_out:
                phrases = self.left_out.setdefault(source, [])
                phrases += [one for one in found.left_out if one not in phrases]
        return self._sets[key]

    def _load_known(self, split: Split) -> ImageSet:
        """The known images, their labels in the order of the spec's classes."""
        found = self._load(self.options["known"], split, as_known=True)
        classes = self._known_classes(found.classes)
        if classes != found.classes:
            found = found.only(classes)
        return found if self._spec is None else found.with_classes(self._spec.classes)

    def _known_classes(self, there: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the known set's classes that are known.

        Raises:
            UserError: where they are not those that were learned.
        """
        source, wanted = self.options["known"], self.options["known_classes"]
        classes = there if wanted is None else resolve(wanted, there, source)
        if self._spec is not None:
            way_out = "rename the classes, give another data.known with images of all, or train on these"
            if not {*composed(self._spec.classes)} - {*composed(classes)}:
                way_out = "name those that were learned in data.known_classes, or train on these"
            same_classes(self._spec.classes, classes, f"the known set {source}", way_out=way_out)
        return classes

    def _load_unknown(self, source: str, split: Split) -> ImageSet:
        if source != REST:
            return self._load(source, split)
        known, wanted = self.options["known"], self.options["known_classes"]
        found = self._load(known, split, as_known=True)
        if wanted is None:
            raise UserError(
                f"the source {REST} is what data.known_classes leaves; give that, or another source"
            )
        others = [name for name in found.classes if name not in resolve(wanted, found.classes, known)]
        if not others:
            raise UserError(
                f"data.known_classes names all classes of {known}, so that none is left as {REST}: leave one "
                "out, or name others with data.unknown"
            )
        return found.only(others)

    def seen(self, before: ImageDigests | None) -> ImageDigests:
        """Digests of the training and validation images, and of those that were trained on ``before``."""
        train, val = self.load_training()
        now = ImageDigests(packed_digests(train.images), packed_digests(val.images))
        return now if before is None else now.trained_on_too(before.train)

    def refuse_seen(self, seen: ImageDigests | None, stage: str) -> None:
        """Stop where images that are held out for ``stage`` made the checkpoint, whatever they are called.

        Raises:
            UserError: unless that is allowed; then the results are optimistic.
        """
        if seen is None:
            return
        images = self.load_test() if stage == "test" else self.load_calibration()
        whose = "the test images" if stage == "test" else f"{self.options['known']}'s held-out images"
        thresholds = stage == "test" and self.options["calibrate_on"] != "test"
        # published sets may hold a few copies across their own splits, which every user of them lives with
        few = PUBLISHED_COPIES * len(images) if is_published(self.options["known"]) else 0
        shared = seen.among(images, whose, calibration=thresholds)
        found = [phrase for phrase, count in shared.items() if count > few and phrase not in self.leaks]
        if found and stage == "validate" and not self.options["allow_overlap"]:
            raise UserError(
                f"no image is left to validate on: {'; '.join(found)}; test the checkpoint, or set "
                "data.allow_overlap true to look at images that it was made of"
            )
        refuse_leaks(found, self.options["allow_overlap"])
        self.leaks += found

    def refuse_missing(self) -> None:
        """Stop where an unknown set is not there, before any image is read: many take long.

        Raises:
            UserError: naming the first.
        """
        for source in (*self.sets.values(), *self.calibration_unknown.values()):
            if source != REST:
                refuse_missing(source, root=Path(self.options["root"]), download=self.download)

    def load_training(self) -> tuple[ImageTable, ImageTable]:
        """The known training and validation images.

        Raises:
            UserError: for a source that does not exist or cannot be read, or too few images.
        """
        if self.train is not None and self.val is not None:
            return self.train, self.val
        pool = self._load_known("train")
        self._own_val = pool.own_validation
        train, val = self._own_validation(pool) if pool.own_validation else self._draw_validation(pool)
        self.train, self.val = ImageTable.of([train]), ImageTable.of([val])
        if self._spec is None:
            self._spec = self._measure(pool.classes, self.train.images)
        self._sets.clear()  # the two tables have copies of their own
        return self.train, self.val

    def _draw_validation(self, pool: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Divide known images into those to train on and those to choose by."""
        fraction = self.options["val_fraction"]
        train, val = pool.held_out(fraction, self.options["seed"], "validation")
        copies = len(set(pool.keys)) < len(pool.keys)
        if copies and fraction and not len(val):  # else a class of two different images gives one up
            raise UserError(
                f"all images of a class in {self.options['known']} are copies of one another, and copies "
                f"stay in the same part: none of the {len(pool.labels)} is left for validation, so give each "
                "class different images"
            )
        if not len(train) or not len(val):
            raise UserError(
                f"data.val_fraction {fraction} leaves {len(train)} training and {len(val)} "
                f"validation images of the {len(pool.labels)} in {self.options['known']}; choose another "
                "share, or give more images"
            )
        return pool.take(train), pool.take(val)

    def _own_validation(self, pool: ImageSet) -> tuple[ImageSet, ImageSet]:
        """Training and validation images of a source that keeps both, those to train on without copies."""
        known = self.options["known"]
        measured, self._spec = self._spec, self._spec or self._measure(pool.classes, pool.images)
        val = self._load_known("validation")
        self._spec = measured  # again, without the copies
        held_out = {key: row for row, key in reversed([*enumerate(pixel_digests(val.images))])}
        twins = [held_out.get(key) for key in pixel_digests(pool.images)]
        rows = [row for row, twin in enumerate(twins) if twin is None]
        if not rows:
            raise UserError(f"every training image of {known} is one of its validation images; remove these")
        self.notes.append(
            f"the {len(val):,} validation images are those that {known} keeps apart, so that "
            "data.val_fraction does not apply"
        )
        if copies := [(row, twin) for row, twin in enumerate(twins) if twin is not None]:
            named = ", ".join(f"{pool.files[row]} = {val.files[twin]}" for row, twin in copies[:3])
            what = (
                f"{len(copies):,} training images are validation images too and"
                if len(copies) > 1
                else "1 training image is a validation image too and"
            )
            self.notes.append(f"{what} not trained on ({named}{', …' * (len(copies) > 3)})")
        return pool.take(torch.tensor(rows)), val

    def _measure(self, classes: tuple[str, ...], images: Images) -> DataSpec:
        refuse_unknown(classes)
        channels, size = images.shape[1:3]
        if (wanted := self.pixel_format) is not None:
            spec = DataSpec(classes, *wanted)
            spec.check()
            return spec
        mean, std = (per_channel(self.options[name], channels) for name in ("mean", "std"))
        if mean is None or std is None:
            measured = mean_and_std(images)
            mean, std = mean or measured[0], std or measured[1]
        spec = DataSpec(classes, channels, size, mean, std)
        spec.check()
        return spec

    def load_test(self) -> ImageTable:
        """Known test images, then each unknown set, all of whose labels are ``K``.

        Raises:
            UserError: where an image that chooses the threshold is among them, unless that is allowed.
        """
        if self.test is not None:
            return self.test
        unknown_label = self.spec.num_classes
        known = self._load_known("test")
        unknown = {name: self._load_unknown(source, "test") for name, source in self.sets.items()}
        test = self._with_unknowns(known, unknown, unknown_label)
        if self.options["calibrate_on"] != "test":  # else all are, on purpose, and the results say so
            self.leaks = self._leaks({self.options["known"]: known, **unknown})
        refuse_leaks(self.leaks, self.options["allow_overlap"])
        self.test = test
        self._sets.clear()  # the table has a copy of its own
        return self.test

    def load_predict(self) -> ImageTable:
        """The images of ``predict``, without labels (-1), or those of the test."""
        if self.options["predict"] is None:
            return self.load_test()
        return ImageTable.of([self._load(self.options["predict"], "test")], [-1])

    def load_calibration(self) -> ImageTable:
        """The images that choose the threshold: validation plus calibration unknowns, or the test's."""
        if self.options["calibrate_on"] == "test":
            return self.load_test()
        _, val = self.load_training()
        if not self.calibration_unknown:
            return val
        unknown = {n: self._load_unknown(s, "validation") for n, s in self.calibration_unknown.items()}
        known = ImageSet(val.images, val.labels, self.spec.classes)
        return self._with_unknowns(known, unknown, self.spec.num_classes)

    def _with_unknowns(self, known: ImageSet, unknown: Mapping[str, ImageSet], label: int) -> ImageTable:
        """Known images, then each unknown set (its share drawn by seed), all of label ``K``."""
        parts = [known]
        for found in unknown.values():
            if self.options["unknown_fraction"] < 1:
                generator = torch.Generator().manual_seed(self.options["seed"])
                count = max(1, round(self.options["unknown_fraction"] * len(found)))
                rows = torch.randperm(len(found), generator=generator)[:count].sort().values
                found = found.take(rows)
            parts.append(found)
        return ImageTable.of(parts, [None, *[label] * len(unknown)])

    def _leaks(self, tested: dict[str, ImageSet]) -> list[str]:
        """The images and sets that train or choose the threshold and are tested as well."""
        known, (train, val) = self.options["known"], self.load_training()
        held_out: dict[str, NamedImages] = {f"{known}'s validation images": val}
        if not is_published(known):
            held_out[f"{known}'s training images"] = train
        for name, source in self.calibration_unknown.items():
            held_out[f"the calibration set {name}"] = self._load_unknown(source, "validation")
        test = {f"the test set {name}": images for name, images in tested.items()}
        shared = sorted({*self.calibration_unknown.values()} & {*self.sets.values()})
        few = {}
        if is_published(known):  # whose copies across their own splits every user of them lives with
            few[f"the test set {known}"] = int(PUBLISHED_COPIES * len(tested[known]))
        return [
            *overlaps(held_out, test, few),
            *(f"the unknown set {source} serves both" for source in shared),
        ]

    @property
    def optimistic(self) -> bool:
        """Whether test images take part in choosing the threshold."""
        return self.options["calibrate_on"] == "test" or bool(self.leaks)


def flatten(option: str, unknown: UnknownSets) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Unknown sets by name, and the names in each group.

    Raises:
        UserError: naming the option, where a set or a group has no name, or two sets have one.
    """
    flat: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for name, value in unknown.items():
        members = value if isinstance(value, Mapping) else {name: value}
        if isinstance(value, Mapping):
            groups[name] = tuple(value)
        if not all(one.strip() for one in (name, *members)):
            raise UserError(
                f"{option} has a set without a name: write NAME: SOURCE, as in {{others: folder:DIR}}"
            )
        for member, source in members.items():
            if member in flat:
                raise UserError(f"{option} names {member} twice; give every unknown set a name of its own")
            flat[member] = source
    return flat, groups


def per_channel(value: float | Sequence[float] | None, channels: int) -> tuple[float, ...] | None:
    """One number, or one per channel, as a number per channel."""
    if value is None:
        return None
    found = tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),)
    return found * channels if len(found) == 1 else found


def _one_number(value: object) -> object:
    """A value per channel as one number where the channels agree."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
