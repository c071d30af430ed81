"""Do new images look like their class? Each is scored by the old ones; so is every old one, by the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from antibackdoor.defences.against.statistics import Statistics
from antibackdoor.isolation.covariance import SHRINKAGE, shrunk

__all__ = ["ranks", "scores", "tail"]

Floats = NDArray[np.float64]

_FLOOR = 1e-9
_AT_A_TIME = 2048
# Shares of old and new images of a class together that are looked at, the least like it first, and the fewest images.
_SHARES, _FEWEST = (0.02, 0.1), 5


def scores(old: Statistics, contents: NDArray[np.int16], labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return log odds that an image shows another class, of the old sample (n,) and of new images (m,).

    What an old image is scored by leaves out that image, so that old and new ones are scored alike: a clean new one is
    as likely as an old one to be high.

    Args:
        old: Of the old set.
        contents: int16 (m, 256), of new images.
        labels: int64 (m,).

    Source:
        Linear discriminants with a shrunk covariance; leaving one out by the formula of Sherman and Morrison (1950).
    """
    present = np.flatnonzero(old.counts > 1)
    counts = old.counts[present].astype(np.float64)
    means = old.contents.sums[present] / counts[:, None]
    total = counts.sum()
    within = (old.contents.moments - (means.T * counts) @ means) / total
    precision: Floats = np.asarray(np.linalg.inv(shrunk(within)), dtype=np.float64)
    place = np.full(len(old.counts), -1)
    place[present] = np.arange(len(present))

    def of_old(rows: slice) -> Floats:
        own = place[old.labels[rows]]
        values = old.contents.sample[rows].astype(np.float64)
        distances = _distances(values, means, precision)
        rest = values - means[own]
        turned = rest @ precision
        gain = (1 - SHRINKAGE) * counts[own] / (counts[own] - 1) / total
        length = (turned * rest).sum(1)
        gain /= np.maximum(1 - gain * length, _FLOOR)
        distances += gain[:, None] * ((turned * values).sum(1)[:, None] - turned @ means.T) ** 2
        further = counts[own] / (counts[own] - 1)
        distances[np.arange(len(own)), own] = length * further**2 + gain * (length * further) ** 2
        return _odds(distances, own)

    def of_new(rows: slice) -> Floats:
        return _odds(_distances(contents[rows].astype(np.float64), means, precision), place[labels[rows]])

    return _in_parts(len(old.labels), of_old), _in_parts(len(labels), of_new)


def _in_parts(count: int, of: Callable[[slice], Floats]) -> Floats:
    """Return what is found of all rows, float64 (count,), a few thousand at a time."""
    found = np.empty(count)
    for first in range(0, count, _AT_A_TIME):
        rows = slice(first, first + _AT_A_TIME)
        found[rows] = of(rows)
    return found


def ranks(old: Floats, new: Floats) -> Floats:
    """Return the p-value of every new image of a class, float64 (m,): the share of old ones that are as little like it.

    Source:
        Conformal p-values: Bates et al., Annals of Statistics (2023).
    """
    above = len(old) - np.searchsorted(np.sort(old), new, side="left")
    found: Floats = ((1 + above) / (1 + len(old))).astype(np.float64)
    return found


def tail(old: Floats, new: Floats) -> float:
    """Return the p-value of the new images of a class being more often among the least like it than the old ones.

    Exact where all are of one kind: then the new ones among the highest are as if drawn from all (hypergeometric). Of
    the two shares that are looked at the smaller p-value counts, twice (Bonferroni).
    """
    both = np.concatenate([old, new])
    is_new = np.argsort(-both, kind="stable") >= len(old)
    tried = []
    for share in _SHARES:
        highest = min(len(both), max(_FEWEST, round(share * len(both))))
        tried.append(hypergeom.sf(is_new[:highest].sum() - 1, len(both), len(new), highest))
    return float(min(1.0, len(tried) * min(tried)))


def _distances(values: Floats, means: Floats, precision: Floats) -> Floats:
    """Return squared distances of rows (n, D) to the means of K classes, (n, K)."""
    turned = values @ precision
    found: Floats = (turned * values).sum(1)[:, None] - 2 * turned @ means.T + ((means @ precision) * means).sum(1)
    return found


def _odds(distances: Floats, own: NDArray[np.int64]) -> Floats:
    """Return log odds of the nearest other class to the own one, (n,); 0 where there is none."""
    if distances.shape[1] < 2:
        return np.zeros(len(distances))
    rows = np.arange(len(distances))
    known = own >= 0
    of_own = np.where(known, distances[rows, own], 0.0)
    others = distances.copy()
    others[rows[known], own[known]] = np.inf
    return np.where(known, (of_own - others.min(1)) / 2, 0.0)
