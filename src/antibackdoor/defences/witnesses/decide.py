"""From evidence to a decision: which classes are poisoned, at a stated error, and which of their images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.calibration import COMBINED, NULLS, ORIGIN
from antibackdoor.defences.witnesses.evidence import AT_A_LOOK, QUESTIONS, STATISTICS
from antibackdoor.defences.witnesses.natural import Natural
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.origin import Origin, origin_of
from antibackdoor.defences.witnesses.parts import Part, alike, parts_of, shared_picture
from antibackdoor.defences.witnesses.scene import Scene
from antibackdoor.defences.witnesses.views import Features, views_of
from antibackdoor.isolation.holm import holm
from antibackdoor.isolation.mixture import fit_mixture

__all__ = [
    "DOUBT",
    "Accusation",
    "Decision",
    "Weighed",
    "combined",
    "decide",
    "of_origin_alone",
    "p_values",
    "refined",
    "weigh",
]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
# No statistic alone may weigh more than this, in -log p: a plain background shared by some is a picture as well.
_MOST = 7.0
# Parts of a class that are tried on images of other classes.
_ON_OTHERS = 3
# Least overlap (Jaccard) with the part from which its refinement replaces it.
_REFINES = 0.9
# Times the error up to which a class is in doubt, and up to which a training without its suspects tries them.
DOUBT, _TRIED = 5, 10
# Shares of a class's error that go to poison from everywhere and to poison from one class.
_OF_PARTS, _OF_ORIGIN = 0.9, 0.1
# An image is left out of training, though not flagged, from this posterior on: a little poison teaches the backdoor.
_NEAR = 0.1


@dataclass(frozen=True, eq=False)
class Accusation:
    """The strongest evidence on one class.

    Attributes:
        part: The part of the class that it speaks of.
        figures: Statistics by name; "origin" alone where poison from one class is what it speaks of.
        p_value: Of the class, before classes are counted.
        adjusted: The same after Holm's correction over the classes that were looked at.
        posterior: float64 (n,), probability of every image of the class to be of the part.
        source: The class that the images come from, where they come from one.
        strange: bool (n,), in which the encoder's classifier sees another class; it was not fitted to what is accused.
    """

    part: Part
    figures: dict[str, float]
    p_value: float
    adjusted: float
    posterior: Floats
    strange: Bools
    source: int | None = None


@dataclass(frozen=True, eq=False)
class Decision:
    """What one look comes to.

    Attributes:
        accusations: The strongest of every class that was looked at, least p-value first.
        suspects: bool (N,), images of poisoned classes with a posterior above one half.
        near: bool (N,), what is left out of training: the suspects, what may belong to them, and what is tried.
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
        """Those that are below the error, for images that nobody vouches for."""
        return self._between(-math.inf, self.alpha)

    @property
    def doubtful(self) -> tuple[Accusation, ...]:
        """Those that are not, but would be at ``DOUBT`` times the error, for images that nobody vouches for."""
        return self._between(self.alpha, DOUBT * self.alpha)

    @property
    def tried(self) -> tuple[Accusation, ...]:
        """Those that are not, but would be at ``_TRIED`` times the error: a training without their parts tells."""
        return self._between(self.alpha, _TRIED * self.alpha)

    def _between(self, above: float, most: float) -> tuple[Accusation, ...]:
        found = (one for one in self.accusations if above < one.adjusted <= most)
        return tuple(one for one in found if (one.posterior > 0.5).any())


def decide(seen: Seen, alpha: float) -> Decision:
    """Judge every class.

    Args:
        seen: What was observed.
        alpha: Largest probability of accusing any class of a clean set, above 0 and below 1.

    Source:
        p-values of the statistics are combined as by Fisher; since they are not independent, the sum has an empirical
        null of its own. Over classes by Holm, 1979.
    """
    count, features = len(seen.labels), Features(seen)
    # What is large is not kept: it is of one class at a time.
    looked = [_Looked.at(weighed) for weighed in weigh(seen, features)]
    raw, corrected = p_values([one.statistics for one in looked])
    accusations = []
    suspects, near, scores = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool), np.zeros(count)
    for of_class, p_value, adjusted in zip(looked, raw, corrected, strict=True):
        part, figures, posterior, source = of_class.speaks(adjusted <= alpha, alpha / len(looked))
        if seen.data.vouched is not None:  # a person has looked at these
            posterior[seen.data.vouched.numpy()[part.views.rows]] = 0
        strange = part.views.foreign > 0
        accused = posterior > 0.5
        if adjusted <= _TRIED * alpha and accused.any():
            strange[accused] = features.seen_without(part.views.rows[accused])[0] != part.views.label
        accusations.append(Accusation(part, figures, p_value, adjusted, posterior, strange, source))
        rows, of = part.views.with_copies
        scores[rows] = posterior[of] * -math.log(p_value)
        if adjusted <= alpha:
            suspects[rows], near[rows] = posterior[of] > 0.5, posterior[of] > _NEAR
    accusations.sort(key=lambda one: one.p_value)
    decision = Decision(tuple(accusations), suspects, near, scores, alpha)
    for one in decision.tried:
        rows, of = one.part.views.with_copies
        near[rows] = one.posterior[of] > 0.5
    suspects &= seen.open
    near &= seen.open
    return decision


@dataclass(frozen=True, eq=False)
class Weighed:
    """What was measured of a class.

    Attributes:
        parts: The likeliest, each with its statistics by name and the sum of -log p; at least one.
        origin: What came from one class.
    """

    parts: tuple[tuple[Part, dict[str, float], float], ...]
    origin: Origin | None

    @property
    def strongest(self) -> tuple[Part, dict[str, float], float]:
        """The part with the largest sum."""
        return max(self.parts, key=lambda one: one[2])

    @property
    def statistics(self) -> tuple[float, float]:
        """The largest sum, and the statistic of ``origin``."""
        return self.strongest[2], 0.0 if self.origin is None else self.origin.statistic


def weigh(seen: Seen, features: Features) -> Iterator[Weighed]:
    """Yield what was measured of every class that has parts.

    What needs no network is measured of all parts of a class; the three that come off worst are tried on others.
    """
    natural = Natural(seen)
    for views in views_of(seen, features, natural):
        scene = Scene(seen, features, views.label)
        looked = [(part, {name: STATISTICS[name](scene, part) for name in AT_A_LOOK}) for part in parts_of(views)]
        looked.sort(key=lambda one: -combined(one[1]))
        weighed = []
        for part, figures in looked[:_ON_OTHERS]:
            figures |= {name: measure(scene, part) for name, measure in STATISTICS.items() if name not in figures}
            weighed.append((part, figures, combined(figures)))
        if weighed:
            yield Weighed(tuple(weighed), origin_of(scene, views, natural))


@dataclass(frozen=True, eq=False)
class _Looked:
    """What is kept of a class once it was measured: nothing large."""

    statistics: tuple[float, float]
    part: Part
    figures: dict[str, float]
    posterior: Floats
    origin: Origin | None

    @classmethod
    def at(cls, weighed: Weighed) -> _Looked:
        part, figures, _ = weighed.strongest
        kept = dataclasses.replace(part, views=part.views.light)
        return cls(weighed.statistics, kept, figures, refined(part), weighed.origin)

    def speaks(self, accused: bool, most: float) -> tuple[Part, dict[str, float], Floats, int | None]:
        """Return part, figures, posterior and source of the evidence that accuses the class, if any does."""
        if self.origin is None or not accused or not of_origin_alone(*self.statistics, most):
            return self.part, self.figures, self.posterior, None
        part = Part(self.part.views, self.origin.members, "origin")
        return part, {"origin": self.origin.statistic}, self.origin.posterior.copy(), self.origin.source


def combined(figures: Mapping[str, float]) -> float:
    """Return the sum over questions of the largest -log p of the statistics that ask it, none more than 7.

    Where the rest of the class is the one that holds many kinds of things, what that weighs is taken off.
    """
    total = -_weight("diversity", -figures.get("diversity", 0.0))
    for names in QUESTIONS.values():
        total += max((min(_MOST, _weight(name, figures[name])) for name in names if name in figures), default=0.0)
    return total


def _weight(name: str, figure: float) -> float:
    return -math.log(NULLS[name].p_value(figure))


def p_values(statistics: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return p-values of classes, and the same adjusted by Holm's method.

    A class can be poisoned from everywhere or from one class: of the two p-values, each for its share of the error
    (Šidák, 1967, with weights), the less counts.

    Args:
        statistics: Of each class the sum of its strongest part, and that of ``origin``, 0 where there is none.
    """
    raw = [min(_shares(*pair)) for pair in statistics]
    return raw, holm(raw)


def of_origin_alone(everywhere: float, one_class: float, most: float) -> bool:
    """Return whether an accused class is judged by what came from one class.

    Poison from everywhere has a picture that it shares as well, and is told better by its parts: they speak where they
    suffice.

    Args:
        everywhere: Sum of the strongest part.
        one_class: Statistic of ``origin``.
        most: p-value up to which the part suffices.
    """
    of_part, of_origin = _shares(everywhere, one_class)
    return of_part > most and of_origin < of_part


def _shares(everywhere: float, one_class: float) -> tuple[float, float]:
    pairs = ((COMBINED.p_value(everywhere), _OF_PARTS), (ORIGIN.p_value(one_class), _OF_ORIGIN))
    of_part, of_origin = (1.0 if p >= 1 else -math.expm1(math.log1p(-p) / share) for p, share in pairs)
    return of_part, of_origin


def refined(part: Part) -> Floats:
    """Return the posterior of every image of a class, float64 (n,), from all views of it together.

    Two Gaussians are fitted to the joint views and to how much of the part's picture, or of its style where that tells
    it, an image has, started from the part.
    """
    from sklearn.mixture import GaussianMixture

    views, inside = part.views, part.members
    shared = shared_picture(views.styles if part.source == "style" else views.pictures, inside)
    spread = max(float(shared[views.fitted].std()), 1e-9)
    points = np.column_stack([views.points, (shared - shared[views.fitted].mean()) / spread])
    start = np.stack([points[inside].mean(0), points[~inside].mean(0)])
    mixture = GaussianMixture(
        2,
        reg_covar=1e-3,
        means_init=start,
        weights_init=[inside.mean(), 1 - inside.mean()],
        precisions_init=[_precision(points[side]) for side in (inside, ~inside)],
        max_iter=50,
    )
    posterior: Floats = fit_mixture(mixture, points[views.fitted]).predict_proba(points)[:, 0]
    # A mixture that left its start describes something else besides.
    return posterior if alike(posterior > 0.5, inside) >= _REFINES else (posterior + inside) / 2


def _precision(points: Floats) -> Floats:
    covariance = np.cov(points.T).reshape(points.shape[1], -1) + 0.05 * np.eye(points.shape[1])
    found: Floats = np.asarray(np.linalg.inv(covariance), dtype=np.float64)
    return found
