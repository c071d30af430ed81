"""One Gaussian or two: how a class is cut wherever it is cut."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

__all__ = ["two_gaussians"]


def two_gaussians(points: NDArray[np.float64], *, restarts: int) -> tuple[GaussianMixture, float]:
    """Fit two Gaussians.

    Args:
        points: float (n, D), standardised.
        restarts: Starts of which the likeliest is kept.

    Returns:
        The mixture, and the gain in BIC per point over one Gaussian.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        two = GaussianMixture(2, n_init=restarts, random_state=0, reg_covar=1e-3).fit(points)
        one = GaussianMixture(1, random_state=0, reg_covar=1e-3).fit(points)
    return two, float((one.bic(points) - two.bic(points)) / len(points))
