"""What every source is asked for, and what it gives."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from osr_lightning.data.features import FeatureExtractor
from osr_lightning.data.splits import holdout, holdout_by_content
from osr_lightning.data.stream import Images, select
from osr_lightning.data_spec import PixelFormat, composed
from osr_lightning.errors import UserError, did_you_mean

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ImageSet:
    """``N`` images and their classes.

    Attributes:
        images: ``(N, C, H, W)`` uint8, in memory or streamed from disk.
        labels: ``(N,)`` int64, indices into ``classes``.
        classes: The names of the classes.
        files: For folders one path per image, relative to the folder; else empty.
        keys: For sets of the user's own one digest of content per image, equal for copies; else empty.
        note: What a user should know of the images, in a sentence; or empty.
        left_out: What is in a folder and not among the images, counted and named; a phrase for each reason.
        own_validation: Whether the source has known validation images of its own, so that none are to be
            taken from its training images.
    """

    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    files: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    note: str = ""
    left_out: tuple[str, ...] = ()
    own_validation: bool = False

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)

    def with_classes(self, classes: tuple[str, ...]) -> ImageSet:
        """The same images, labelled by the places of their classes' names in ``classes``.

        A name is the same composed and decomposed; a checkpoint of before may hold either.
        """
        names = composed(classes)
        place = torch.tensor([names.index(name) for name in composed(self.classes)])
        return replace(self, labels=place[self.labels], classes=classes)

    def take(self, indices: Tensor) -> ImageSet:
        """The images at ``indices`` ``(n,)``, in that order, with the same classes."""
        rows = indices.tolist()
        return replace(
            self,
            images=select(self.images, indices),
            labels=self.labels[indices],
            files=tuple(self.files[row] for row in rows) if self.files else (),
            keys=tuple(self.keys[row] for row in rows) if self.keys else (),
        )

    def held_out(self, fraction: float, seed: int, part: str) -> tuple[Tensor, Tensor]:
        """The indices of the rest and of the images held out, by content where they have keys; see `holdout`.

        Args:
            fraction: share of each class to hold out, in ``[0, 1)``.
            seed: of this split alone.
            part: what they are held out for, in a word; by content another one is another split.
        """
        if self.keys:
            return holdout_by_content(self.keys, self.labels, fraction, f"{part} {seed}")
        return holdout(self.labels, fraction, seed)

    def only(self, classes: Sequence[str]) -> ImageSet:
        """The images of some classes, which are then all there are."""
        place = torch.full((len(self.classes),), -1)
        for label, name in enumerate(classes):
            place[self.classes.index(name)] = label
        chosen = self.take((place[self.labels] >= 0).nonzero().flatten())
        return replace(chosen, labels=place[chosen.labels], classes=tuple(classes))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a source is asked for.

    Attributes:
        name: The source's, see `osr_lightning.data.sources.load_source`.
        split: ``train``, ``validation`` or ``test``.
        root: Where published sets are kept.
        size: Height and width of the images; what suits them if not given.
        channels: Channels of the images, 1 or 3; what suits them if not given.
        seed: Seed of the noise.
        test_seed: Seed of the test images that are held out where a known source has no test split.
        as_known: The network learns this source: where it has no test split of its own, hold out 20%
            of each class as test and give the rest for the other splits.
        memory_limit: Bytes; a folder's images that would take more are read from disk as needed.
        download: Whether a set that is missing may be downloaded into ``root``.
        pixel_format: What a backbone wants of images; goes before size and channels.
        extractor: A frozen backbone, whose features the images then bring.
        check: Is told of the classes before the images are prepared, and may refuse them.
    """

    name: str
    split: Split
    root: Path
    size: int | None = None
    channels: int | None = None
    seed: int = 0
    test_seed: int = 0
    as_known: bool = False
    memory_limit: float = math.inf
    download: bool = True
    pixel_format: PixelFormat | None = None
    extractor: FeatureExtractor | None = None
    check: Callable[[tuple[str, ...]], object] = field(default=lambda classes: None, compare=False)

    @property
    def kind(self) -> str:
        """What stands before the colon of the source's name; all of it without one."""
        return self.name.partition(":")[0]

    @property
    def argument(self) -> str:
        """What stands behind that colon."""
        return self.name.partition(":")[2]

    @property
    def path(self) -> Path:
        """The argument as a path, in which ``~`` is the home directory."""
        return Path(os.path.expanduser(self.argument))


def resolve(
    wanted: Sequence[str | int],
    classes: Sequence[str],
    source: str,
    *,
    option: str = "data.known_classes",
    least: int = 2,
) -> tuple[str, ...]:
    """The names of the classes that are meant by name or by number.

    Args:
        wanted: names; or whole numbers from 0 up in the order of the classes, where a class of that very name
            goes first. Names are the same composed and decomposed.
        classes: the names there are.
        source: whose they are.
        option: what names them.
        least: how many there must be, 1 or 2.

    Raises:
        UserError: for one that does not exist or is given twice, or where there are too few; or for a number
            where the classes are named by numbers in another writing.
    """
    found, names = [], composed(classes)
    for one in wanted:
        (name,) = composed([str(one)])
        if name in names:
            found.append(classes[names.index(name)])
        elif (number := _number(one)) is not None and number < len(classes):
            if alike := [name for name in classes if _number(name.lstrip("0") or "0") == number]:
                raise UserError(
                    f"{option}: {one} may be the class {alike[0]!r} of {source} or the one at "
                    f"place {number}: write the name as it is, in quotes"
                )
            found.append(classes[number])
        else:
            if str(one).startswith("[") and len(wanted) == 1:  # a list that the parser could not read
                raise UserError(
                    f"{option}: {one} is no list of names: put names that look like numbers, "
                    'truths or null in quotes, as ["1e3", "true"]'
                )
            has = did_you_mean(one, classes, f"it has {', '.join(classes)}", repr)
            raise UserError(f"{option}: {source} has no class {one!r}; {has}")
    if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
        raise UserError(f"{option} names {twice[0]!r} twice, by name or number: name each class once")
    if not len(found) >= least:
        count = "at least two classes" if least == 2 else "a class"
        raise UserError(f"{option} must name {count}, not {list(wanted)}")
    return tuple(found)


def _number(value: object) -> int | None:
    """A whole number from 0 up, or text that is one as people write it; None for all else."""
    text = str(value)
    plain = isinstance(value, (int, str)) and text.isascii() and text.isdecimal() and text == str(int(text))
    return int(text) if plain else None
