"""The one owner of the score's name and of every score's calibration record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, get_args

from torch import Tensor, nn

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration, CalibrationMethod, fixed_calibration
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
        if fixed is not None and not _is_finite(fixed):
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
            raise UserError(
                f"there is no threshold for the score {self.score}, only for: {known}; "
                f"choose one with osr calibrate --ckpt_path CKPT --model.score {self.score} (in Python "
                "OpenSetTrainer().calibrate(model, datamodule, CKPT))"
            )
        return self.records[self.score]

    @property
    def value(self) -> float:
        """The threshold, in units of the score."""
        return self.record.value

    def forward(self, score: Tensor) -> Tensor:
        """Scores ``(B,)`` -> whether each image is unknown, ``(B,)`` bool; see `is_unknown`."""
        return is_unknown(score, self.value)

    def get_extra_state(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"records": {name: asdict(record) for name, record in self.records.items()}}

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
    known = {field.name for field in fields(Calibration)}
    try:
        if not isinstance(state, Mapping):
            raise TypeError
        records = {
            str(name): Calibration(**{key: value for key, value in record.items() if key in known})
            for name, record in state["records"].items()
        }
        for record in records.values():
            _check(record)
        records = {
            name: replace(record, value=float(record.value), known_scores=tuple(record.known_scores))
            for name, record in records.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError("the checkpoint's calibration records are damaged; run osr calibrate") from error
    return records


def _check(record: Calibration) -> None:
    if isinstance(record.value, float) and not math.isfinite(record.value):
        raise UserError("the checkpoint has a threshold that is no finite number; run osr calibrate")
    texts = (record.method in get_args(CalibrationMethod), isinstance(record.calibrated_on, str))
    counts = (record.count_known, record.count_unknown)
    shares = (record.rejected_known, record.rejected_unknown)
    right = (
        _is_finite(record.value),
        *texts,
        isinstance(record.optimistic, bool),
        isinstance(record.guarantee, str),
        *(isinstance(count, int) for count in counts),
        *(share is None or _is_finite(share) for share in shares),
        isinstance(record.known_scores, (tuple, list)),
        all(isinstance(score, float) and not math.isnan(score) for score in record.known_scores),
        record.target is None or isinstance(record.target, dict) or _is_finite(record.target),
    )
    if not all(right):
        raise TypeError


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
