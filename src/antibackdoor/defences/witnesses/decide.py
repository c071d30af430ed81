"""From evidence to a decision: which classes are poisoned, at a stated error, and which of their images."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.calibration import COMBINED, NULLS
from antibackdoor.defences.witnesses.evidence import STATISTICS
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import Part, parts_of, views_of

__all__ = ["Accusation", "Decision", "decide", "holm", "refined"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
# An image is left out of training, though not flagged, from this posterior on: a little poison teaches the backdoor.
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class Accusation:
    """The strongest evidence on one class.

    Attributes:
        part: The part of the class that it speaks of.
        figures: Statistics by name.
        statistic: Sum of -log p over them.
        p_value: Of the class, before classes are counted.
        adjusted: The same after Holm's correction over the classes that were looked at.
        posterior: float64 (n,), probability of every image of the class to be of the part.
    """

    part: Part
    figures: dict[str, float]
    statistic: float
    p_value: float
    adjusted: float
    posterior: Floats

    @property
    def kind(self) -> str:
        """What was found, in words."""
        return f"two kinds of images by {_NAMES[self.part.view]}"


_NAMES = {
    "learning": "how they were learned",
    "features": "what is seen in them",
    "both": "how they were learned and what is seen in them",
}


@dataclass(frozen=True, eq=False)
class Decision:
    """What one look comes to.

    Attributes:
        accusations: The strongest of every class that was looked at, least p-value first.
        suspects: bool (N,), images of poisoned classes with a posterior above one half.
        near: bool (N,), the suspects and what may belong to them.
        scores: float64 (N,), higher is more suspect; comparable over classes.
        alpha: The error it was made at.
    """

    accusations: tuple[Accusation, ...]
    suspects: Bools
    near: Bools
    scores: Floats
    alpha: float

    @property
    def poisoned(self) -> tuple[Accusation, ...]:
        """Those that are below the error."""
        return tuple(one for one in self.accusations if one.adjusted <= self.alpha)

    @property
    def doubtful(self) -> tuple[Accusation, ...]:
        """Those that are not, but would be at five times the error."""
        return tuple(one for one in self.accusations if self.alpha < one.adjusted <= 5 * self.alpha)


def decide(seen: Seen, alpha: float, *, known: Bools | None = None) -> Decision:
    """Judge every class.

    Args:
        seen: What was observed.
        alpha: Largest probability of accusing any class of a clean set, above 0 and below 1.
        known: bool (N,), images that are suspected already: they are not looked at again.

    Source:
        p-values of the statistics are combined as by Fisher; since they are not independent, the sum has an empirical
        null of its own. Over classes by Holm, 1979.
    """
    count = len(seen.labels)
    if known is not None and known.any():
        return _among(seen, alpha, np.flatnonzero(~known))
    strongest = [
        max(map(lambda part: _weighed(seen, part), parts), key=lambda one: one[2])
        for parts in map(parts_of, views_of(seen))
        if parts
    ]
    raw = [COMBINED.p_value(statistic) for _, _, statistic in strongest]
    accusations = []
    suspects, near, scores = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool), np.zeros(count)
    for (part, figures, statistic), p_value, adjusted in zip(strongest, raw, holm(raw), strict=True):
        posterior = refined(part)
        accusation = Accusation(part, figures, statistic, p_value, adjusted, posterior)
        accusations.append(accusation)
        rows = part.views.rows
        scores[rows] = posterior * -math.log(p_value)
        if adjusted <= alpha:
            suspects[rows], near[rows] = posterior > 0.5, posterior > _NEAR
    accusations.sort(key=lambda one: one.p_value)
    return Decision(tuple(accusations), suspects, near, scores, alpha)


def _among(seen: Seen, alpha: float, rows: NDArray[np.int64]) -> Decision:
    """Judge some images alone, and return the decision by the rows of the whole set."""
    smaller = dataclasses.replace(
        seen,
        data=seen.data.select(torch.from_numpy(rows)),
        trajectories=seen.trajectories[:, rows],
        features=seen.features[rows],
        trained=seen.trained[rows],
    )
    found = decide(smaller, alpha)
    count = len(seen.labels)
    suspects, near, scores = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool), np.zeros(count)
    suspects[rows], near[rows], scores[rows] = found.suspects, found.near, found.scores
    return Decision(found.accusations, suspects, near, scores, alpha)


def _weighed(seen: Seen, part: Part) -> tuple[Part, dict[str, float], float]:
    """Return a part with its statistics and the sum of -log p over them."""
    figures = {name: measure(seen, part) for name, measure in STATISTICS.items()}
    return part, figures, sum(-math.log(NULLS[name].p_value(value)) for name, value in figures.items())


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted by Holm's method, in the given order."""
    order, adjusted, largest = np.argsort(p_values), [1.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def refined(part: Part) -> Floats:
    """Return the posterior of every image of a class, float64 (n,), from all views of it together.

    Two Gaussians are fitted to the joint views, started from the part, whichever view it was found in.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    points, inside = part.views.points["both"], part.members
    start = np.stack([points[inside].mean(0), points[~inside].mean(0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture = GaussianMixture(
            2,
            reg_covar=1e-3,
            means_init=start,
            weights_init=[inside.mean(), 1 - inside.mean()],
            precisions_init=[_precision(points[side]) for side in (inside, ~inside)],
            max_iter=50,
        ).fit(points[part.views.fitted])
    posterior: Floats = mixture.predict_proba(points)[:, 0]
    # A mixture that left its start describes something else.
    return posterior if _overlap(posterior > 0.5, inside) >= 0.5 else part.inside


def _precision(points: Floats) -> Floats:
    covariance = np.cov(points.T).reshape(points.shape[1], -1) + 0.05 * np.eye(points.shape[1])
    found: Floats = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return found


def _overlap(one: Bools, other: Bools) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))
