"""The decision: which scores are called unknown at a threshold. Whatever decides calls this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


@overload
def is_unknown(score: Tensor, threshold: float | Tensor) -> Tensor: ...
@overload
def is_unknown(score: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]: ...
def is_unknown(score: Any, threshold: Any) -> Any:
    """Whether each score is greater than the threshold: one that is equal is known, one of NaN is unknown.

    Args:
        score: ``(...)`` float64, an array or a tensor.
        threshold: in units of the score.

    Returns:
        ``(...)`` bool.
    """
    return ~(score <= threshold)
