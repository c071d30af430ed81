"""Mixtures of Gaussians: how a class is cut wherever it is cut."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

__all__ = ["fit_mixture", "two_gaussians"]

_STARTS = 3  # of which the likeliest is kept


def fit_mixture(mixture: GaussianMixture, points: NDArray[np.floating[Any]]) -> GaussianMixture:
    """Fit a mixture to points, float (n, D), and return it; one that has not settled by its last step will do."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(points)


def two_gaussians(points: NDArray[np.float64]) -> tuple[GaussianMixture, float]:
    """Fit two Gaussians.

    Args:
        points: float (n, D), standardised.

    Returns:
        The mixture, and the gain in BIC per point over one Gaussian.
    """
    from sklearn.mixture import GaussianMixture

    two = fit_mixture(GaussianMixture(2, n_init=_STARTS, random_state=0, reg_covar=1e-3), points)
    one = fit_mixture(GaussianMixture(1, random_state=0, reg_covar=1e-3), points)
    return two, float((one.bic(points) - two.bic(points)) / len(points))
