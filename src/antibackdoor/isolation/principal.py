"""Principal components of what a network makes of one class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["principal_components"]

# A column that varies less says nothing.
_FLOOR = 1e-6


def principal_components(
    values: NDArray[np.float64], count: int, fitted: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return images in the leading principal components of some of them.

    Args:
        values: float64 (N, D); columns are standardised by the images that are fitted to.
        count: Components wanted; there are no more than columns that vary, and fewer than images.
        fitted: bool (N,), images to fit to; all by default.

    Returns:
        float64 (N, components); one column of zeros where nothing varies.
    """
    from sklearn.decomposition import PCA

    own = values if fitted is None else values[fitted]
    spread = own.std(0)
    varied = spread > _FLOOR
    if not varied.any():
        return np.zeros((len(values), 1))
    standard = (values[:, varied] - own[:, varied].mean(0)) / spread[varied]
    count = min(count, int(varied.sum()), len(own) - 1)
    analysis = PCA(count, svd_solver="randomized", random_state=0)
    analysis.fit(standard if fitted is None else standard[fitted])
    return np.asarray(analysis.transform(standard))
