"""Every class as the evidence sees it: how its images were learned, what an encoder sees in them, what they show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.natural import Natural, originals
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.style import standard
from antibackdoor.isolation.covariance import SHRINKAGE, shrunk
from antibackdoor.isolation.deviations import in_deviations

__all__ = ["SMALLEST_CLASS", "Features", "Views", "evenly", "views_of"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

# Fewer images describe no two Gaussians in nine dimensions.
SMALLEST_CLASS = 40
# Principal components: of the encoder's features in all, of each view in a class; and images that what all classes
# share is fitted to.
_FEATURES, _OF_VIEW, _FITTED_TO = 64, 4, 6000
_AT_A_TIME = 4096  # images that are classified at once
_CLIP, _FLOOR = 8.0, 1e-9


@dataclass(frozen=True, eq=False)
class Views:
    """A class seen in several ways.

    Attributes:
        label: The class.
        rows: int64 (n,), its images; of near-duplicates, which share a picture by nature, the first alone.
        copies: int64 (c, 2), the other near-duplicates, and the place in ``rows`` of what each is a copy of.
        fitted: bool (n,), those that mixtures are fitted to.
        points: float64 (n, 9): four components of the trajectory of losses, four of the encoder's features, and
            ``foreign``, each of unit variance.
        foreign: float64 (n,), log odds that the encoder's features are of another class.
        white: float64 (n, D), features whitened by the within-class covariance of the other classes.
        between: float64 (D, d), orthonormal directions in which the other classes differ, in that space.
        pictures: float32 (n, P), pixels less the class's mean, whitened by what natural images of the set vary in.
        styles: float32 (n, S), how its images are made, whitened by the within-class covariance of the other classes.
    """

    label: int
    rows: NDArray[np.int64]
    copies: NDArray[np.int64]
    fitted: Bools
    points: Floats
    foreign: Floats
    white: Floats = field(repr=False)
    between: Floats = field(repr=False)
    pictures: NDArray[np.float32] = field(repr=False)
    styles: NDArray[np.float32] = field(repr=False)

    @property
    def light(self) -> Views:
        """The same without pictures, styles and features."""
        return replace(self, pictures=self.pictures[:0], styles=self.styles[:0], white=self.white[:0])

    @property
    def with_copies(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All images of the class, int64 (m,), and the place in ``rows`` of what each is or is a copy of, (m,)."""
        copies, of = self.copies.T
        return np.concatenate([self.rows, copies]), np.concatenate([np.arange(len(self.rows)), of])


class Features:
    """The encoder's features of all images, and classifiers of them.

    ``values`` are their principal components, float64 (N, D); ``foreign`` are log odds of the likeliest other class to
    the own one, float64 (N,), by a classifier that was not fitted to the image.

    Args:
        seen: What was observed.

    Source:
        Linear discriminants with shrinkage (scikit-learn's solver "lsqr", written out so that a class that loses images
        does not cost the others anew), five folds.
    """

    def __init__(self, seen: Seen) -> None:
        self._labels = seen.labels
        self.values = _principal(seen.features.astype(np.float64), _FEATURES)
        present = np.unique(self._labels)
        self._rows = {label: np.flatnonzero((self._labels == label) & seen.trained) for label in present.tolist()}
        self._most = max(2, _FITTED_TO // len(present)) if seen.trained.sum() > _FITTED_TO else len(self._labels)
        self._known: dict[int, tuple[Floats, Floats] | None] = {}
        self.foreign, self.shown = np.zeros(len(self._labels)), np.zeros(len(self._labels), dtype=np.int64)
        fold = np.random.default_rng(0).integers(0, 5, len(self._labels))
        for number in range(5):
            aside = fold == number
            scores_of, classes = self._without(aside)
            for rows in _in_parts(np.flatnonzero(aside)):
                scores = scores_of(rows)
                self.foreign[rows] = _against(scores, classes, self._labels[rows])
                self.shown[rows] = classes[scores.argmax(1)]

    def seen_without(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
        """Return what a classifier that was fitted without these rows sees in them, rows rising.

        The class of each, int64 (n,), and the probability of that class, float64 (n,).
        """
        aside = np.zeros(len(self._labels), dtype=bool)
        aside[rows] = True
        scores_of, classes = self._without(aside)
        scores = scores_of(np.flatnonzero(aside))
        sure: Floats = 1 / np.exp(scores - scores.max(1, keepdims=True)).sum(1)
        return classes[scores.argmax(1)], sure

    def _without(self, aside: Bools) -> tuple[Callable[[NDArray[np.int64]], Floats], NDArray[np.int64]]:
        """Return what tells log posteriors (n, K) of rows, up to a constant, by all images but these; and the classes.

        All classes count as equally probable. Only classes that lose images are described anew.
        """
        lose = set(np.unique(self._labels[aside]).tolist())
        described = {}
        for label, rows in self._rows.items():
            if label in lose:
                found = self._describe(rows[~aside[rows]])
            else:
                if label not in self._known:
                    self._known[label] = self._describe(rows)
                found = self._known[label]
            if found is not None:
                described[label] = found
        if len(described) < 2:
            return lambda rows: np.zeros((len(rows), 1)), self._labels[:1]
        means = np.stack([mean for mean, _ in described.values()])
        covariance = sum(each for _, each in described.values()) / len(described)
        directions = np.linalg.lstsq(covariance, means.T, rcond=None)[0]
        offsets = 0.5 * (means.T * directions).sum(0)
        return lambda rows: self.values[rows] @ directions - offsets, np.array(list(described), dtype=np.int64)

    def _describe(self, rows: NDArray[np.int64]) -> tuple[Floats, Floats] | None:
        """Return mean (D,) and shrunk covariance (D, D) of some images of a class, None of fewer than two."""
        from sklearn.covariance import empirical_covariance, shrunk_covariance

        if len(rows) < 2:
            return None
        values = self.values[rows[evenly(len(rows), self._most)]]
        return values.mean(0), shrunk_covariance(empirical_covariance(values), shrinkage=SHRINKAGE)


def views_of(seen: Seen, features: Features, natural: Natural, *, only: int | None = None) -> Iterator[Views]:
    """Yield the views of every class that has 40 images to fit to, or of one.

    Args:
        seen: What was observed.
        features: Of it.
        natural: Whitens pixels.
        only: The one class.

    Source:
        Log-losses standardised in class and epoch, and their mixture: ours; trajectories were clustered before by
        TellTale (NDSS 2025). Whitening by the within-class covariance: SPECTRE (ICML 2021), SCAn (USENIX Security
        2021); here that of the other classes, so that a class cannot hide what it holds.
    """
    labels = seen.labels
    spread, made = _Spread(features.values, labels), _Spread(standard(seen.styles), labels)
    for label in np.unique(labels) if only is None else (only,):
        rows = np.flatnonzero(labels == label)
        if len(rows) < SMALLEST_CLASS:
            continue
        pictures = natural.of(int(label), rows)
        original = originals(pictures)
        own = original == np.arange(len(rows))
        place = np.cumsum(own) - 1
        copies = np.column_stack([rows[~own], place[original[~own]]])
        rows, pictures = rows[own], pictures[own]
        fitted = seen.trained[rows]
        if fitted.sum() < SMALLEST_CLASS:
            continue
        losses = in_deviations(seen.trajectories[:, rows].T, _CLIP, fitted)
        white, whitening = spread.whitened(int(label), rows, fitted)
        between = spread.between(int(label), rows[fitted], whitening)
        # By fewer images of other classes it is not known what images vary in by nature.
        known = len(labels) - (labels == label).sum() >= SMALLEST_CLASS
        styles = known * made.whitened(int(label), rows, fitted)[0].astype(np.float32)
        foreign = features.foreign[rows]
        strange = np.clip((foreign - np.median(foreign[fitted])) / max(foreign[fitted].std(), _FLOOR), -4, 4)
        points = np.column_stack(
            [
                _unit(_principal(losses, _OF_VIEW, fitted), fitted),
                _unit(_principal(white, _OF_VIEW, fitted), fitted),
                strange,
            ]
        )
        yield Views(int(label), rows, copies, fitted, points, foreign, white, between, pictures, styles)


def _in_parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[first : first + _AT_A_TIME] for first in range(0, len(rows), _AT_A_TIME)]


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many indices, int64, evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _against(scores: Floats, classes: NDArray[np.int64], labels: NDArray[np.int64]) -> Floats:
    """Return log odds of the likeliest other class to the own one, float64 (n,), from log posteriors (n, K)."""
    own = classes == labels[:, None]
    if len(classes) < 2:
        return np.zeros(len(labels))
    known = own.any(1)
    own = own[known]
    of_own, of_others = (np.where(mask, scores[known], -np.inf).max(1) for mask in (own, ~own))
    found = np.zeros(len(labels))
    found[known] = np.clip(of_others - of_own, -1e3, 1e3)
    return found


def _principal(points: Floats, count: int, fitted: Bools | None = None) -> Floats:
    """Return principal components, float64 (n, at most count), of points that are fitted to."""
    from sklearn.decomposition import PCA

    own = points if fitted is None else points[fitted]
    if not np.ptp(own, axis=0).any():
        return np.zeros((len(points), 1))
    count = min(count, points.shape[1], len(own) - 1)
    solver = "randomized" if min(own.shape) > 200 else "full"
    found: Floats = PCA(count, svd_solver=solver, random_state=0).fit(own).transform(points)
    return found


def _unit(points: Floats, fitted: Bools) -> Floats:
    found: Floats = (points - points[fitted].mean(0)) / np.maximum(points[fitted].std(0), _FLOOR)
    return found


class _Spread:
    """Means and scatter of every class, (K, D) and (K, D, D), summed once: classes are then described in turn."""

    def __init__(self, features: Floats, labels: NDArray[np.int64]) -> None:
        self._features = features
        self._present, self._counts = np.unique(labels, return_counts=True)
        order, ends = np.argsort(labels, kind="stable"), np.cumsum(self._counts)
        size = features.shape[1]
        self._means, self._scatter = np.empty((len(ends), size)), np.empty((len(ends), size, size))
        for place, rows in enumerate(np.split(order, ends[:-1])):
            own = features[rows]
            self._means[place] = own.mean(0)
            own = own - self._means[place]
            self._scatter[place] = own.T @ own
        self._total = self._scatter.sum(0)

    def whitened(self, label: int, rows: NDArray[np.int64], fitted: Bools) -> tuple[Floats, Floats]:
        """Return a class's features whitened by what the other classes are spread by, and the map that does it."""
        others = self._present != label
        covariance = (self._total - self._scatter[~others].sum(0)) / max(1, int(self._counts[others].sum()))
        values, vectors = np.linalg.eigh(shrunk(covariance))
        whitening: Floats = vectors / np.sqrt(values)
        own = self._features[rows]
        return (own - own[fitted].mean(0)) @ whitening, whitening

    def between(self, label: int, own: NDArray[np.int64], whitening: Floats) -> Floats:
        """Return directions in which the other classes differ, once whitened, (D, d); ``own`` are the class's rows."""
        means = self._means[self._present != label]
        # Where there is one other class, what tells it from this one stands in.
        apart = means - (means.mean(0) if len(means) > 1 else self._features[own].mean(0))
        found: Floats = np.linalg.svd(apart @ whitening, full_matrices=False)[2][: max(1, min(len(means) - 1, 8))].T
        return found
