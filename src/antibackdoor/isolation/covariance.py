"""Covariances that are always invertible."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHRINKAGE", "shrunk"]

# Towards a multiple of the identity; and what is added where nothing varies.
SHRINKAGE, _FLOOR = 0.1, 1e-9


def shrunk(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a covariance, float64 (D, D), shrunk towards the mean variance in all directions.

    Source:
        Ledoit and Wolf (2004), with a fixed weight.
    """
    scale = np.trace(covariance) / len(covariance)
    found: NDArray[np.float64] = (1 - SHRINKAGE) * covariance + (SHRINKAGE * scale + _FLOOR) * np.eye(len(covariance))
    return found
