"""The one owner of the score's name and of every score's calibration record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from osr_lightning.errors import NotCalibrated, UserError
from osr_lightning.scoring.calibration import (
    Calibration,
    NotFinite,
    fixed_calibration,
    is_finite,
    read_record,
)
from osr_lightning.scoring.decision import is_unknown


class Threshold(nn.Module):
    """Above it, the score calls an image unknown.

    Records are saved with the weights as extra state, which neither ``half()`` nor ``weights_only=True``
    touches. The numbers are Python floats, compared with scores in float64.

    Args:
        score: name of the score that decides.
        fixed: a threshold that was given as a number; it goes before any record.

    Attributes:
        records: score -> its calibration.
    """

    def __init__(self, score: str, fixed: float | None = None) -> None:
        super().__init__()
        if fixed is not None and not is_finite(fixed):
            raise UserError(f"a threshold is a finite number, not {fixed!r}")
        self.score = score
        self.fixed = None if fixed is None else float(fixed)
        self.records: dict[str, Calibration] = {}

    @property
    def record(self) -> Calibration:
        """The deciding score's calibration.

        Raises:
            UserError: where it was never calibrated.
        """
        if self.fixed is not None:
            return fixed_calibration(self.fixed)
        if self.score not in self.records:
            known = ", ".join(self.records) or "none yet"
            raise NotCalibrated(
                f"there is no threshold for the score {self.score}, only for: {known}; "
                f"choose one with osr calibrate --ckpt_path CKPT --model.score {self.score} (in Python "
                "OpenSetTrainer().calibrate(model, datamodule, CKPT))",
                self.score,
            )
        return self.records[self.score]

    @property
    def value(self) -> float:
        """The threshold, in units of the score."""
        return self.record.value

    def by_class(self, name: str, score: Tensor, predicted: Tensor) -> Tensor:
        """A score as it is compared: where each class has a threshold of its own, shifted by the class.

        Args:
            name: of the score.
            score: ``(B,)`` float64.
            predicted: ``(B,)`` int64 in ``0 .. K-1``, before any rejection.
        """
        record = self.records.get(name)
        if record is None or not record.class_shifts:
            return score
        return score + torch.tensor(record.class_shifts, dtype=score.dtype, device=score.device)[predicted]

    def forget_shifts(self) -> None:
        """Take scores as they are, as a calibration has to: it begins anew."""
        self.records = {name: one for name, one in self.records.items() if not one.class_shifts}

    def forward(self, score: Tensor) -> Tensor:
        """Scores ``(B,)`` -> whether each image is unknown, ``(B,)`` bool; see `is_unknown`."""
        return is_unknown(score, self.value)

    def get_extra_state(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        # not asdict, which copies a thousand scores one by one at every checkpoint
        return {"records": {name: dict(vars(record)) for name, record in self.records.items()}}

    def set_extra_state(self, state: Any) -> None:  # noqa: ANN401 - from a file, so it may be anything
        """Take a checkpoint's records; the score in use stays.

        Raises:
            UserError: where they are none.
        """
        self.records = read_records(state)


def read_records(state: object) -> dict[str, Calibration]:
    """The calibration records in a checkpoint's extra state.

    Raises:
        UserError: where they are damaged.
    """
    try:
        if not isinstance(state, Mapping):
            raise TypeError
        return {str(name): read_record(record) for name, record in state["records"].items()}
    except NotFinite as error:
        raise UserError(f"the checkpoint has {error}; run osr calibrate") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("the checkpoint's calibration records are damaged; run osr calibrate") from error
