"""Which images a study takes, and how they are divided: checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from osr_lightning.errors import UserError

UnknownSets = Mapping[str, "str | Mapping[str, str]"]
LARGEST = 4096  # pixels a side
REST = "rest"  # the source of the images of those classes that are not among the known ones


@dataclass
class Selection:
    """What `osr_lightning.data.datamodule.OpenSetDataModule` explains under the same names.

    Attributes:
        groups: group -> names of its unknown sets, where the unknown sets are given in groups.

    Raises:
        UserError: naming what is out of range.
    """

    known: str
    unknown: UnknownSets
    known_classes: Sequence[str | int] | None = None
    calibration_unknown: Mapping[str, str] = field(default_factory=dict)
    calibrate_on: Literal["validation", "test"] = "validation"
    allow_overlap: bool = False
    predict: str | None = None
    root: Path = Path("data")
    image_size: int | None = None
    channels: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    val_fraction: float = 0.2
    unknown_fraction: float = 1.0
    memory_limit: float = 4.0
    seed: int = 0
    test_seed: int = 0
    groups: dict[str, tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        """Check the ranges, and open the groups of unknown sets."""
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST:
            raise UserError(f"data.image_size must lie between 1 and {LARGEST}, got {self.image_size}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction must lie between 0 and 1, got {self.val_fraction}")
        if not 0 < self.unknown_fraction <= 1:
            raise UserError(f"data.unknown_fraction must lie in (0, 1], got {self.unknown_fraction}")
        if self.std is not None and not min(self.std, default=0) > 0:
            raise UserError(f"data.std must be above 0, got {list(self.std)}")
        flat, self.groups = flatten(self.unknown)
        if self.known in flat:
            raise UserError(f"data.unknown has a set named {self.known}, like the known source; rename it")
        self.sets = flat

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sets of the test; a batch's ``source`` indexes them, 0 is the known set."""
        return (self.known, *self.sets)

    def calibrated_on(self, *, unknowns: bool) -> str:
        """Which images calibrate, in words; ``unknowns`` says whether the method uses unknown ones."""
        if self.calibrate_on == "test":
            return "test images: " + " + ".join(self.source_names)
        names = (self.known, *self.calibration_unknown) if unknowns else (self.known,)
        return "validation images: " + " + ".join(names)


def numbers(value: float | list[float] | None) -> tuple[float, ...] | None:
    """One number, or one per channel, as a tuple."""
    if value is None:
        return None
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),)


def flatten(unknown: UnknownSets) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Unknown sets by name, and the names in each group."""
    flat: dict[str, str] = {}
    groups: dict[str, tuple[str, ...]] = {}
    for name, value in unknown.items():
        members = value if isinstance(value, Mapping) else {name: value}
        if isinstance(value, Mapping):
            groups[name] = tuple(value)
        for member, source in members.items():
            if member in flat:
                raise UserError(
                    f"data.unknown names {member} twice; give every unknown set a name of its own"
                )
            flat[member] = source
    return flat, groups


def shown(value: object) -> object:
    """A value per channel as one number where the channels agree."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
