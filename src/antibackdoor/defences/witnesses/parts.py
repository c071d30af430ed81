"""Every class cut in two, by how its images were learned, by what an encoder sees in them, and by both together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.isolation.mixture import two_gaussians

__all__ = ["SMALLEST_CLASS", "SMALLEST_PART", "Part", "Views", "parts_of", "views_of"]

Floats = NDArray[np.float64]

# Fewer images describe no two Gaussians in eight dimensions; a part of fewer is no group.
SMALLEST_CLASS, SMALLEST_PART = 40, 10
# Principal components: of the encoder's features in all, of each view in a class.
_FEATURES, _OF_VIEW = 48, 4
# Shrinkage of the within-class covariance towards a multiple of the identity.
_SHRINKAGE = 0.1
_CLIP, _FLOOR = 8.0, 1e-9


@dataclass(frozen=True, eq=False)
class Views:
    """A class seen in several ways.

    Attributes:
        label: The class.
        rows: int64 (n,), its images.
        fitted: bool (n,), those that mixtures are fitted to.
        points: By name of the view, float64 (n, d), each column of unit variance.
        white: float64 (n, 48), features whitened by the within-class covariance of the other classes.
        between: float64 (48, d), orthonormal directions in which the other classes differ, in that space.
    """

    label: int
    rows: NDArray[np.int64]
    fitted: NDArray[np.bool_]
    points: dict[str, Floats]
    white: Floats = field(repr=False)
    between: Floats = field(repr=False)


@dataclass(frozen=True, eq=False)
class Part:
    """One of the two parts of a class in one view.

    Attributes:
        views: Of the class.
        view: What it was cut by.
        inside: float64 (n,), responsibility of this part for every image of the class, 0..1.
        delta_bic: How much better two Gaussians describe the class than one, in BIC an image.
    """

    views: Views
    view: str
    inside: Floats
    delta_bic: float

    @property
    def members(self) -> NDArray[np.bool_]:
        """Bool (n,), images of the class that lie in it."""
        return self.inside > 0.5


def views_of(seen: Seen) -> Iterator[Views]:
    """Yield the views of every class that has 40 images to fit to.

    Source:
        Log-losses standardised in class and epoch, and their mixture: ours; trajectories were clustered before by
        TellTale (NDSS 2025). Whitening by the within-class covariance: SPECTRE (ICML 2021), SCAn (USENIX Security
        2021); here that of the other classes, so that a class cannot hide what it holds.
    """
    labels = seen.labels
    features = _principal(seen.features.astype(np.float64), _FEATURES)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        fitted = seen.trained[rows]
        if fitted.sum() < SMALLEST_CLASS:
            continue
        losses = _standard(seen.trajectories[:, rows], fitted)
        white, between = _whitened(features, labels, int(label), fitted)
        learning = _unit(_principal(losses, _OF_VIEW, fitted), fitted)
        looks = _unit(_principal(white, _OF_VIEW, fitted), fitted)
        points = {"learning": learning, "features": looks, "both": np.hstack([learning, looks])}
        yield Views(int(label), rows, fitted, points, white, between)


def parts_of(views: Views) -> list[Part]:
    """Return both parts of every view, but for those that hold too few images."""
    found = []
    for view, points in views.points.items():
        mixture, delta_bic = two_gaussians(points[views.fitted], restarts=3)
        shares = mixture.predict_proba(points)
        for side in (0, 1):
            part = Part(views, view, shares[:, side], delta_bic)
            if min(part.members.sum(), (~part.members).sum()) >= SMALLEST_PART:
                found.append(part)
    return found


def _standard(logs: Floats, fitted: NDArray[np.bool_]) -> Floats:
    """Return log-losses (E, n) standardised in every epoch by median and deviation, (n, E)."""
    middle = np.median(logs[:, fitted], 1, keepdims=True)
    spread = 1.4826 * np.median(np.abs(logs[:, fitted] - middle), 1, keepdims=True) + 1e-3
    found: Floats = np.clip((logs - middle) / spread, -_CLIP, _CLIP)
    return found.T


def _principal(points: Floats, count: int, fitted: NDArray[np.bool_] | None = None) -> Floats:
    """Return principal components, float64 (n, at most count), of points that are fitted to."""
    from sklearn.decomposition import PCA

    own = points if fitted is None else points[fitted]
    count = min(count, points.shape[1], len(own) - 1)
    solver = "randomized" if min(own.shape) > 200 else "full"
    found: Floats = PCA(count, svd_solver=solver, random_state=0).fit(own).transform(points)
    return found


def _unit(points: Floats, fitted: NDArray[np.bool_]) -> Floats:
    found: Floats = (points - points[fitted].mean(0)) / np.maximum(points[fitted].std(0), _FLOOR)
    return found


def _whitened(
    features: Floats, labels: NDArray[np.int64], label: int, fitted: NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return a class's features whitened by what the other classes are spread by, and where those differ."""
    others = [np.flatnonzero(labels == other) for other in np.unique(labels) if other != label]
    means = np.stack([features[rows].mean(0) for rows in others])
    residuals = np.concatenate([features[rows] - mean for rows, mean in zip(others, means, strict=True)])
    covariance = residuals.T @ residuals / max(1, len(residuals))
    scale = np.trace(covariance) / len(covariance)
    covariance = (1 - _SHRINKAGE) * covariance + (_SHRINKAGE * scale + _FLOOR) * np.eye(len(covariance))
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(values)
    own = features[labels == label]
    white = (own - own[fitted].mean(0)) @ whitening
    # Where there is one other class, what tells it from this one stands in.
    apart = means - means.mean(0) if len(means) > 1 else means - own[fitted].mean(0)
    between = np.linalg.svd(apart @ whitening, full_matrices=False)[2][: max(1, min(len(means) - 1, 8))]
    return white, between.T
