"""What the known images say of themselves."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from osr_lightning.errors import UserError

UNKNOWN = "unknown"
_NAMED_UNKNOWN = "a known class is named {!r}, which is what rejected images are called; rename it"
LARGEST = 4096  # pixels a side of a network's input
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")


class PixelFormat(NamedTuple):
    """What pretrained weights want of an image; see `DataSpec` for the attributes."""

    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None
    interpolation: str

    def at(self, image_size: int) -> PixelFormat:
        """The same for images of another size, of which the same share is cut out."""
        scaled = None if self.resize is None else round(self.resize * image_size / self.image_size)
        return self._replace(image_size=image_size, resize=scaled)


class DataSpec(NamedTuple):
    """Measured once from the training split, kept with the weights.

    Attributes:
        classes: names of the ``K`` known classes, in the order of their labels.
        channels: 1 for grey images, 3 for colour.
        image_size: height and width of the network's input, in pixels.
        mean: of the training pixels per channel, on the scale [0, 1].
        std: their standard deviation per channel, above 0.
        resize: shorter side in pixels before the square of ``image_size`` is cut out of the middle, as
            pretrained weights want it; None where images are resized to the square whatever their shape.
        interpolation: of that resizing: bilinear, bicubic or lanczos, antialiased; bilinear without it.
    """

    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    interpolation: str = "bilinear"

    @property
    def num_classes(self) -> int:
        """``K``."""
        return len(self.classes)

    @property
    def pixel_format(self) -> PixelFormat:
        """All but the classes."""
        return PixelFormat(*(getattr(self, name) for name in PixelFormat._fields))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        return self.channels, self.image_size, self.image_size

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in self._asdict().items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """The inverse of `to_dict`.

        Raises:
            UserError: where the values are none.
        """
        try:
            spec = cls(
                classes=tuple(map(_text, values["classes"])),
                channels=int(values["channels"]),
                image_size=int(values["image_size"]),
                mean=tuple(map(float, values["mean"])),
                std=tuple(map(float, values["std"])),
                resize=None if values.get("resize") is None else int(values["resize"]),
                interpolation=_text(values.get("interpolation", "bilinear")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"this is no data spec of known images ({type(error).__name__}: {error}); train again"
            ) from error
        spec.check()
        return spec

    def check(self) -> None:
        """Refuse what no network could be built for.

        Raises:
            UserError: naming what is wrong.
        """
        if len(self.classes) < 2:
            raise UserError(
                f"the known images must have at least 2 classes, not {len(self.classes)} "
                f"({', '.join(self.classes)}); name a source with one subfolder or label per class"
            )
        if len(set(self.classes)) < len(self.classes):
            raise UserError("two known classes have the same name; rename one")
        if UNKNOWN in self.classes:
            raise UserError(_NAMED_UNKNOWN.format(UNKNOWN))
        if self.channels not in (1, 3) or not 1 <= self.image_size <= LARGEST:
            raise UserError(
                f"known images need 1 or 3 channels and at most {LARGEST} pixels a side, "
                f"not {self.channels} and {self.image_size}"
            )
        if self.resize is not None and not self.image_size <= self.resize <= 2 * LARGEST:
            raise UserError(
                f"images of {self.image_size} pixels cannot be cut out of images of {self.resize}; give "
                f"data.image_size from 1 to {LARGEST}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"there is no interpolation {self.interpolation!r}; there are {', '.join(INTERPOLATIONS)}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or not all(map(math.isfinite, values)):
                raise UserError(
                    f"data.{name} must be one number for each of the {self.channels} channels, "
                    f"not {list(values)}"
                )
        if min(self.std) <= 0:
            raise UserError(f"data.std must be above 0, got {min(self.std)}")

    def __str__(self) -> str:
        """``4 classes (cat, dog, frog, truck), colour 32x32``."""
        names = list(self.classes)
        if len(names) > 12:
            names = [*names[:11], f"... {names[-1]}"]
        colour = "colour" if self.channels == 3 else "grey"
        return (
            f"{self.num_classes} classes ({', '.join(names)}), {colour} {self.image_size}x{self.image_size}"
        )


def composed(names: Iterable[str]) -> tuple[str, ...]:
    """The names in Unicode's NFC: an accented letter is one character, as typed, and not two, as on a Mac."""
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def refuse_unknown(classes: Iterable[str]) -> None:
    """Refuse a class to be learned that is named as rejected images are, in any case.

    Checkpoints of earlier versions may have one that is spelled ``Unknown``.

    Raises:
        UserError: naming it.
    """
    for name in classes:
        if name.casefold() == UNKNOWN:
            raise UserError(
                f"{_NAMED_UNKNOWN.format(name)}, or make its images an unknown set, which is not trained on"
            )


def same_classes(
    expected: tuple[str, ...],
    found: tuple[str, ...],
    who: str,
    whose: str = "that were learned",
    way_out: str = "rename the classes, or train on these",
) -> None:
    """Stop where two sets of class names differ, whatever their order and their Unicode form.

    Args:
        expected: the classes that were learned.
        found: those that ``who`` has.
        who: what the second names belong to, as a sentence's subject.
        whose: what the first names belong to, after "the classes".
        way_out: how to go on.

    Raises:
        UserError: naming the difference.
    """
    expected, found = composed(expected), composed(found)
    there, wanted = set(found), set(expected)  # of ten thousand names, too
    extra = [name for name in found if name not in wanted]
    missing = [name for name in expected if name not in there]
    parts = [
        f"{verb} {', '.join(map(repr, names[:5]))}{' and more' * (len(names) > 5)}"
        for verb, names in (("has", extra), ("lacks", missing))
        if names
    ]
    if parts:
        raise UserError(f"{who} does not have the classes {whose}: it {' and '.join(parts)}; {way_out}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value
