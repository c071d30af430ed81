"""Principal components of what a network makes of one class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["principal_components"]

# A column that varies less says nothing.
_FLOOR = 1e-6
# Rows that are in float64 at once: a set of millions of images does not fit twice.
_ROWS = 8192


def principal_components(
    values: NDArray[np.floating[Any]], count: int, fitted: NDArray[np.bool_] | None = None
) -> NDArray[np.float64]:
    """Return images in the leading principal components of some of them.

    Args:
        values: float (N, D); columns are standardised by the images that are fitted to.
        count: Components wanted; there are no more than columns that vary, and fewer than images.
        fitted: bool (N,), images to fit to; all by default.

    Returns:
        float64 (N, components); one column of zeros where nothing varies.
    """
    from sklearn.decomposition import PCA

    own = (values if fitted is None else values[fitted]).astype(np.float64)
    mean, spread = own.mean(0), own.std(0)
    varied = spread > _FLOOR
    if not varied.any():
        return np.zeros((len(values), 1))
    count = min(count, int(varied.sum()), len(own) - 1)
    analysis = PCA(count, svd_solver="randomized", random_state=0)
    analysis.fit((own[:, varied] - mean[varied]) / spread[varied])
    weights = (analysis.components_ / spread[varied]).T
    offset = mean[varied] @ weights + analysis.mean_ @ analysis.components_.T
    points = np.empty((len(values), weights.shape[1]))
    for first in range(0, len(values), _ROWS):
        part = slice(first, first + _ROWS)
        points[part] = values[part][:, varied].astype(np.float64) @ weights - offset
    return points
