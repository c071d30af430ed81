"""Which images of other classes a class is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["images_of_others"]

# More tell no more, and with many classes it adds up.
_MOST = 20_000


def images_of_others(of_class: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the images of other classes to compare a class with: bool (N,), at most 20,000, evenly spread.

    Args:
        of_class: bool (N,), the class.
        known: bool (N,), the images that may be looked at.
    """
    others = np.flatnonzero(~of_class & known)
    chosen = np.zeros(len(known), dtype=bool)
    chosen[others[:: max(1, -(-len(others) // _MOST))]] = True
    return chosen
