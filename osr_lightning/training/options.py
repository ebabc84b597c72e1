"""What a classifier is told, checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import CalibrationMethod
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
    learning_rate: float
    schedule: Schedule
    compile: bool
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("alpha", "unknown_prior"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"model.{name} must lie between 0 and 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"model.learning_rate must be above 0, got {self.learning_rate}")
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
