"""Figures in deviations from what is usual, which a minority does not move."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["in_deviations"]

# From a median absolute deviation to the standard deviation of a Gaussian; and what is added where nothing varies.
_GAUSSIAN, _FLOOR = 1.4826, 1e-3


def in_deviations(
    values: NDArray[np.float64], most: float, fitted: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return every column in deviations from its median, float64 (N, D), at most ``most`` either way.

    Args:
        values: float64 (N, D).
        most: Above 0.
        fitted: bool (N,), the rows that median and deviation are of; None for all.
    """
    own = values if fitted is None else values[fitted]
    middle = np.median(own, 0)
    spread = _GAUSSIAN * np.median(np.abs(own - middle), 0) + _FLOOR
    found: NDArray[np.float64] = np.clip((values - middle) / spread, -most, most)
    return found
