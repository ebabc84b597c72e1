"""What a classifier is told, checked once."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from osr_lightning.data.augment import AUGMENTATIONS
from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import CalibrationMethod
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.scoring.sweep import Costs
from osr_lightning.training.optimizers import Schedule


@dataclass(frozen=True)
class Options:
    """The arguments of :class:`osr_lightning.training.base.OpenSetClassifier`, which explains them.

    Raises:
        UserError: naming the one that is out of range.
    """

    score: str
    detectors: list[str]
    calibration: CalibrationMethod
    alpha: float
    threshold: float
    unknown_prior: float
    learning_rate: float | None
    weight_decay: float | None
    label_smoothing: float | None
    schedule: Schedule | None
    augment: str | None
    balance_classes: bool
    compile: bool
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        """Check names and ranges."""
        choices = [("score", self.score, [*SCORES, *DETECTORS])]
        choices += [("detectors", name, list(DETECTORS)) for name in self.detectors]
        if self.augment is not None:
            choices.append(("augment", self.augment, list(AUGMENTATIONS)))
        for option, name, names in choices:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1)
                hint = f"did you mean {close[0]}? " if close else ""
                raise UserError(f"model.{option}: there is no {name!r}; {hint}There are {', '.join(names)}")
        for name in ("alpha", "unknown_prior"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"model.{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"model.learning_rate must be above 0, got {self.learning_rate}")
        if self.weight_decay is not None and not 0 <= self.weight_decay < math.inf:
            raise UserError(f"model.weight_decay must be 0 or above, got {self.weight_decay}")
        if self.label_smoothing is not None and not 0 <= self.label_smoothing < 1:
            raise UserError(f"model.label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if not math.isfinite(self.threshold):
            raise UserError(f"model.threshold must be a finite number, got {self.threshold}")
        if self.score == "msp" and not 0 <= self.threshold <= 1:
            raise UserError(f"model.threshold must lie in [0, 1] for the score msp, got {self.threshold}")
        if self.calibration == "optuna" and self.score != "msp":
            raise UserError(
                f"model.calibration optuna searches a threshold of the score msp only, not of {self.score}"
            )

    @property
    def fixed(self) -> float | None:
        """The threshold, if it was given as a number."""
        return self.threshold if self.calibration == "fixed" else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
