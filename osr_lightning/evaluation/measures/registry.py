"""The list of all measures of known against unknown images, and how one is added."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from osr_lightning.evaluation.outcomes import Needs, Outcomes, enough

Function = Callable[[Outcomes], "float | None"]
Format = Literal["percent", "rate"]


class Measure(NamedTuple):
    """One measure: how to take it, and what `measure` was told of it."""

    take: Function
    label: str
    format: Format
    says: str
    needs: Needs
    same_as: str


MEASURES: dict[str, Measure] = {}  # by the function's name, which is the key in results.json


def measure(
    *, label: str, format: Format, says: str, needs: Needs = "both", same_as: str = ""
) -> Callable[[Function], Function]:
    """Make a function of `Outcomes` a measure of every test.

    Args:
        label: its name in the report.
        format: how its values are printed.
        says: what it says, in half a sentence.
        needs: the kinds of images without which it is undefined and the function is not called.
        same_as: the measure whose value it always has, on whose line the report names it.

    Raises:
        ValueError: if there is a measure of that name.
    """

    def register(function: Function) -> Function:
        @functools.wraps(function)
        def take(outcomes: Outcomes) -> float | None:
            value = function(outcomes) if enough(needs, outcomes.unknown) else None
            # JSON has neither NaN nor numpy's floats
            return None if value is None or not math.isfinite(value) else float(value)

        if function.__name__ in MEASURES:
            raise ValueError(f"there is a measure named {function.__name__} already")
        MEASURES[function.__name__] = Measure(take, label, format, says, needs, same_as)
        return take

    return register
