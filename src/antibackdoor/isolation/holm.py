"""Correction of p-values for how many there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["holm"]


def holm(raw: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method (1979), in the given order."""
    order, adjusted, largest = np.argsort(raw), [1.0] * len(raw), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(raw) - rank) * raw[index]))
        adjusted[index] = largest
    return adjusted
