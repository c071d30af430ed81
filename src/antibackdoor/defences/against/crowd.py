"""Do new images of a class keep to themselves? Whose neighbours are nearly all new belongs to a group of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from antibackdoor.defences.against.statistics import View
from antibackdoor.isolation.covariance import shrunk

__all__ = ["Crowd", "crowd", "whitened"]

Floats = NDArray[np.float64]

# Neighbours that are looked at, the nearest first; images at a time.
_NEIGHBOURS = (4, 8, 16, 32, 64)
_AT_A_TIME = 1024
_FLOOR = 1e-9


@dataclass(frozen=True, eq=False)
class Crowd:
    """What the neighbours of the new images of a class say.

    Attributes:
        p: Exact where all images are of one kind, corrected for all neighbourhoods that were looked at.
        each: float64 (m,), of each new image: p-value of its own neighbours, corrected for how many of them were looked
            at.
    """

    p: float
    each: Floats


def crowd(old: Floats, new: Floats) -> Crowd:
    """Look at the neighbours of each new image of a class.

    If old and new images are of one kind, which are new is as if drawn by lot, whatever their places: of the nearest r
    of n + m - 1 others to a new image, the number that is new is hypergeometric. The least likely of all counts,
    corrected for how many were looked at (Bonferroni).

    Args:
        old: float64 (n, D), n at least 1.
        new: float64 (m, D), m at least 1.

    Source:
        Ours; after the nearest-neighbour test of two samples (Schilling, 1986; Henze, 1988) and the spatial scan
        statistic (Kulldorff, 1997), by exact tails in place of simulations.
    """
    n, m = len(old), len(new)
    everyone = np.concatenate([old, new])
    sizes = [size for size in _NEIGHBOURS if size <= max(_NEIGHBOURS[0], (n + m) // 2) and size < n + m]
    if not sizes:
        return Crowd(1.0, np.ones(m))
    squares = (everyone**2).sum(1)
    nearest = np.empty((m, sizes[-1]), dtype=np.int64)
    for first in range(0, m, _AT_A_TIME):
        part = new[first : first + _AT_A_TIME]
        distances = squares - 2 * part @ everyone.T  # less the squares of the part, which order nothing
        distances[np.arange(len(part)), n + first + np.arange(len(part))] = np.inf
        nearest[first : first + _AT_A_TIME] = _smallest(distances, sizes[-1]) - n
    counts = (nearest >= 0).cumsum(1)
    tails = np.stack([hypergeom.sf(counts[:, size - 1] - 1, n + m - 1, m - 1, size) for size in sizes], axis=1)
    each: Floats = np.minimum(1.0, tails.min(1) * len(sizes))
    return Crowd(float(min(1.0, each.min() * m)), each)


def whitened(
    old: View, counts: NDArray[np.int64], labels: NDArray[np.int64], new: NDArray[np.int16], of_new: NDArray[np.int64]
) -> tuple[Floats, Floats]:
    """Return directions of old (n, D) and new images (m, D), whitened by how all of them vary within their classes.

    Old and new ones count alike in what they are whitened by, so that nothing tells them apart by it.

    Args:
        old: Of the old set.
        counts: int64 (K,), its images of each class.
        labels: int64 (n,), of its sample.
        new: int16 (m, D).
        of_new: int64 (m,), their labels.
    """
    values = new.astype(np.float64)
    sums = old.sums.astype(np.float64)
    np.add.at(sums, of_new, values)
    counted = counts + np.bincount(of_new, minlength=len(counts))
    means = sums / np.maximum(counted, 1)[:, None]
    within = (old.moments + values.T @ values - (means.T * counted) @ means) / counted.sum()
    variances, axes = np.linalg.eigh(shrunk(within))
    whitening = axes / np.sqrt(variances)
    both = [(old.sample - means[labels]) @ whitening, (values - means[of_new]) @ whitening]
    for part in both:
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), _FLOOR)
    return both[0], both[1]


def _smallest(distances: Floats, count: int) -> NDArray[np.int64]:
    """Return the places of the smallest of each row, rising, int64 (m, count)."""
    if distances.shape[1] > 4 * count:
        some = np.argpartition(distances, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(distances, some, 1).argsort(1, kind="stable")
        return np.take_along_axis(some, order, 1)
    return np.argsort(distances, axis=1, kind="stable")[:, :count]
