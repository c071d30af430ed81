"""Statistical untangling: is a class one group of images or two, given how images of clean classes vary?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Split", "Variation", "identity_of", "outlyingness", "split_in_two", "untangled", "variation", "whitening"]

_MOST_STEPS = 100
_CLOSE = 1e-5
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Variation:
    """How features vary: a feature is the identity of its class plus a variation that is the same for all classes.

    Attributes:
        between: float64 (D, D), covariance of the identities.
        within: float64 (D, D), covariance of the variations.
    """

    between: NDArray[np.float64]
    within: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Split:
    """A class in two groups.

    Attributes:
        second: bool (n,), who is in the second group; the others are in the first.
        centres: float64 (2, R), the means of the groups.
    """

    second: NDArray[np.bool_]
    centres: NDArray[np.float64]

    def margins(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far points, (m, R), lie beyond the middle between the centres, above 0 on the second's side."""
        way = self.centres[1] - self.centres[0]
        length = float(np.linalg.norm(way))
        if length < _TINY:
            return np.zeros(len(points))
        return np.asarray((points - self.centres.mean(0)) @ way / length)


def variation(features: NDArray[np.float64], labels: NDArray[np.int64], *, shrink: bool = True) -> Variation:
    """Estimate how features vary between classes and within them, by expectation and maximisation.

    Args:
        features: (M, D), of images that are known to be clean; their mean is taken away first.
        labels: (M,), each class at least once.
        shrink: Shrink the covariance within classes by Ledoit and Wolf's rule, so that it is of full rank with few
            images.

    Returns:
        The covariances, after 100 steps or once they hardly change.
    """
    centred = features - features.mean(0)
    classes, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(classes), centred.shape[1]))
    np.add.at(sums, place, centred)
    identities = sums / counts[:, None]
    found = _maximised(centred, identities[place], shrink)
    for _ in range(_MOST_STEPS):
        for count in np.unique(counts).tolist():  # mostly the same for all classes, and the inverse is what costs
            rows = counts == count
            identities[rows] = sums[rows] @ _to_identity(found, count).T
        last, found = found, _maximised(centred, identities[place], shrink)
        change = np.linalg.norm(found.between - last.between) + np.linalg.norm(found.within - last.within)
        if change <= _CLOSE * (np.linalg.norm(found.between) + np.linalg.norm(found.within)):
            break
    return found


def whitening(within: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return W, float64 (D, R), with ``W W'`` the pseudo-inverse of a covariance: in ``x W`` it is the identity."""
    values, axes = np.linalg.eigh(within)
    kept = values > len(values) * np.finfo(np.float64).eps * max(float(values[-1]), _TINY)
    return np.asarray(axes[:, kept] / np.sqrt(values[kept]))


def split_in_two(points: NDArray[np.float64], *, starts: int, draw: np.random.Generator) -> Split:
    """Return the two groups, each image in the one whose mean is nearer, that leave the least scatter.

    Args:
        points: (n, R), whitened, n at least 2.
        starts: Random groups to begin with, at least 1; the best end counts.
        draw: Draws them.
    """
    best, least = Split(np.zeros(len(points), dtype=bool), np.stack([points.mean(0)] * 2)), np.inf
    for _ in range(starts):
        split = _settled(points, draw.random(len(points)) >= 0.5)
        scatter = float(((points - split.centres[split.second.astype(int)]) ** 2).sum())
        if scatter < least:
            best, least = split, scatter
    return best


def untangled(points: NDArray[np.float64], whole: NDArray[np.float64], split: Split) -> float:
    """Return J: twice the logarithm of the likelihood of two groups over that of one, per image.

    Args:
        points: (n, R), whitened.
        whole: (R,), the identity of the class if it is one group, whitened.
        split: The two groups.
    """
    apart = points - split.centres[split.second.astype(int)]
    return float((((points - whole) ** 2).sum() - (apart**2).sum()) / len(points))


def identity_of(found: Variation, features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the most likely identity, float64 (D,), of one class with these features, (n, D), centred."""
    return np.asarray(_to_identity(found, len(features)) @ features.sum(0))


def outlyingness(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far values, (K,), lie above their median, in normal standard deviations by the median deviation.

    What lies below is 0. Where half of the values are equal and the deviation is nothing, all above are infinite.
    """
    above = np.maximum(values - np.median(values), 0.0)
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    if deviation > _TINY:
        return np.asarray(above / deviation)
    return np.where(above > _TINY, np.inf, 0.0)


def _to_identity(found: Variation, count: int) -> NDArray[np.float64]:
    """Return what takes the sum of ``count`` features of one class to its most likely identity, (D, D)."""
    return np.asarray(found.between @ np.linalg.pinv(count * found.between + found.within, hermitian=True))


def _maximised(centred: NDArray[np.float64], identities: NDArray[np.float64], shrink: bool) -> Variation:
    rest = centred - identities
    rest = rest - rest.mean(0)
    own = identities - identities.mean(0)
    degrees = max(len(centred) - 1, 1)
    within = rest.T @ rest / degrees
    if shrink and float(np.abs(rest).max()) > _TINY:
        from sklearn.covariance import ledoit_wolf_shrinkage

        share = float(ledoit_wolf_shrinkage(rest, assume_centered=True))
        within = (1 - share) * within + share * np.trace(within) / len(within) * np.eye(len(within))
    return Variation(own.T @ own / degrees, within)


def _settled(points: NDArray[np.float64], second: NDArray[np.bool_]) -> Split:
    second = second.copy()
    if second.all() or not second.any():
        second[0] = not second[0]
    for _ in range(_MOST_STEPS):
        centres = np.stack([points[~second].mean(0), points[second].mean(0)])
        nearer = ((points - centres[1]) ** 2).sum(1) < ((points - centres[0]) ** 2).sum(1)
        if np.array_equal(nearer, second) or nearer.all() or not nearer.any():
            break
        second = nearer
    return Split(second, np.stack([points[~second].mean(0), points[second].mean(0)]))
