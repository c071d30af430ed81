"""Cutting every class by what was hard and was learned all the same: a trigger that is learned late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.isolation.channels import SMALLEST_CLASS, SMALLEST_PART
from antibackdoor.isolation.cuts import MOST, Cut, learned
from antibackdoor.isolation.mixture import two_gaussians
from antibackdoor.isolation.others import images_of_others
from antibackdoor.isolation.principal import principal_components

__all__ = ["Gap", "LateCut", "gap_between", "late_cuts", "was_hard"]

_COMPONENTS, _PENALTY, _PASSES = 100, 0.1, 10
_FLOOR = 1e-6
# A gain that counts once, in what the network sees.
_MUCH = 0.4
# Share of a part that may have been learned half-way: parts of clean classes had two thirds and more, poison a quarter.
_LEARNED = 0.5


@dataclass(frozen=True, eq=False)
class LateCut:
    """One class in two parts: images that were hard, were learned all the same and look like no other class; the rest.

    Attributes:
        label: The class.
        rows: int64 (n,), its images.
        suspicion: float64 (n,), 1 for those images, 0 for the rest.
        gain: How much better two Gaussians describe the sides that the images lie on than one: the gain in BIC per
            image.
        common: Share of the images of other classes that lie on their side, over their share of the class, at most 1.
        early: The training was not finished when this was seen; it is, where nothing else is said.
    """

    label: int
    rows: Tensor
    suspicion: Tensor
    gain: float
    common: float
    early: bool = False

    # A gain that counts once.
    much: ClassVar[float] = _MUCH
    # A slow part (``Cut.slow``) is one that was not learned yet; this one was.
    slow: ClassVar[bool] = False
    # What was hard half-way and is learned now is not what the class is.
    untold: ClassVar[bool] = False

    @property
    def strength(self) -> float:
        """How clearly the class holds such images; 1 is much."""
        return max(self.gain, 0.0) * (1 - self.common) / self.much

    @property
    def kind(self) -> str:
        """What was found, in words."""
        return "two kinds of images, one of which was hard, was learned all the same and looks like no other class"

    @property
    def figures(self) -> str:
        """The figures behind it, in words."""
        return f"strength {self.strength:.2f}; gain {self.gain:.2f}, in other classes {self.common:.2f}"


def late_cuts(
    before: Sequence[Cut], losses: Tensor, half: int, seen: Tensor, labels: Tensor, fitted: Tensor | None = None
) -> list[LateCut]:
    """Cut every class that has 100 images to fit to, and 20 that were hard and were learned, but not most.

    Hard images of a clean class are hard because they look like other classes. Images that were hard until half-way,
    were learned since, that a line can tell from the rest of their class in what the network makes of them, with a gap,
    and on whose side the images of other classes do not lie, have something in common that no class has.

    Args:
        before: Cuts of the classes by the losses until half-way; of each, the part that had not fallen is looked at.
        losses: float (E, N), of the whole training.
        half: Epochs until half-way.
        seen: float (N, D), what the network makes of the images when it is trained.
        labels: int64 (N,).
        fitted: bool (N,), images to fit to; all by default.

    Returns:
        One cut a class that could be cut and whose part was hard, in the order of ``before``.

    Source:
        Ours (docs/log.md).
    """
    found = []
    for cut in before:
        start = (cut.suspicion <= 0.5) & learned(losses[:, cut.rows])
        gap = gap_between(seen, labels, cut.label, start, fitted)
        if gap is None or gap.gain == 0 or gap.share > MOST:
            continue
        if was_hard(losses[:half, cut.rows[gap.inside]]):
            suspicion = gap.inside.double()
            found.append(LateCut(cut.label, cut.rows, suspicion, gap.gain, gap.common))
    return found


def was_hard(losses: Tensor) -> bool:
    """Say whether most of some images were not learned, from their losses until half-way, float (E, n).

    A part that is followed to where it settles may have left the hard images that it started from.
    """
    return float(learned(losses).double().mean()) < _LEARNED


@dataclass(frozen=True, eq=False)
class Gap:
    """Two parts of a class, as far apart as they are in what the network makes of the images.

    Attributes:
        inside: bool (n,), the images of the class that are on the side of the part that was asked for.
        share: Share of the class that they are.
        gain: How much better two Gaussians describe the sides that the images lie on than one: the gain in BIC per
            image.
        common: Share of the images of other classes that lie on that side, over ``share``, at most 1.
    """

    inside: Tensor
    share: float
    gain: float
    common: float

    @property
    def width(self) -> float:
        """How wide the gap is; 1 is much."""
        return max(self.gain, 0.0) / _MUCH


def gap_between(
    seen: Tensor, labels: Tensor, label: int, start: Tensor, fitted: Tensor | None = None, *, grows: bool = True
) -> Gap | None:
    """Return the gap between a part of a class and the rest of it, as the network sees them.

    Args:
        seen: float (N, D), what the network makes of the images.
        labels: int64 (N,).
        label: The class.
        start: bool (n,), the part to start from; it goes to the side of a line on which it lies.
        fitted: bool (N,), images to fit to; all by default.
        grows: The part may grow and shrink to all that is on that side; otherwise it keeps its number.

    Returns:
        The part that it settles on and the gap beside it; a gap of 0 where a part has under 20 images, which are no
        evidence; None of a class of under 100 images to fit to. Of other classes at most 20,000 images are looked at.
    """
    known = np.ones(len(labels), dtype=bool) if fitted is None else fitted.numpy()
    of_class = labels.numpy() == label
    own = of_class & known
    if own.sum() < SMALLEST_CLASS:
        return None
    told = start.numpy().copy()
    trained = known[of_class]
    if _small(told[trained]):
        return Gap(start, float(told[trained].mean()), 0.0, 1.0)
    # The class, and what it is compared with.
    looked = of_class | images_of_others(of_class, known)
    own, of_class = own[looked], of_class[looked]
    points = principal_components(seen.numpy()[looked], _COMPONENTS, own)
    points = points / max(points[own].std(0).max(), _FLOOR)
    inside = _settled(points[own], told[trained], grows=grows)
    if _small(inside):
        return Gap(start, float(inside.mean()), 0.0, 1.0)
    side = _sides_left_out(points[own], inside)
    weights, border = _line(points[own], inside)
    other = points[~of_class] @ weights > border
    common = min(float(other.mean()) / float(inside.mean()), 1.0) if len(other) else 1.0
    _, gain = two_gaussians(side[:, None], restarts=3)
    told[:] = points[of_class] @ weights > border
    told[trained] = inside
    return Gap(torch.from_numpy(told), float(inside.mean()), gain, common)


def _small(inside: NDArray[np.bool_]) -> bool:
    return bool(min(inside.sum(), (~inside).sum()) < SMALLEST_PART)


def _targets(inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return numbers of mean 0 that weigh both parts alike."""
    share = inside.mean()
    return np.asarray(np.where(inside, 1 / share, -1 / (1 - share)))


def _line(points: NDArray[np.float64], inside: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Return weights (D,) and border of the ridge regression that tells a part of the points (n, D) from the rest."""
    centred = points - points.mean(0)
    penalty = _PENALTY * len(points) * np.eye(points.shape[1])
    weights: NDArray[np.float64] = np.linalg.solve(centred.T @ centred + penalty, centred.T @ _targets(inside))
    side = points @ weights
    return weights, float(side[inside].mean() + side[~inside].mean()) / 2


def _sides_left_out(points: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return on which side each point lies of the line that is fitted to all others: (n,), above 0 is inside.

    A ridge regression that leaves out one point has a closed form: its residual is the residual with it over 1 - h,
    where h is the point's entry on the diagonal of the hat matrix.
    """
    centred, targets = points - points.mean(0), _targets(inside)
    penalty = _PENALTY * len(points) * np.eye(points.shape[1])
    solved = np.linalg.solve(centred.T @ centred + penalty, centred.T)
    fitted = centred @ (solved @ targets)
    hat = (centred * solved.T).sum(1) + 1 / len(points)
    side: NDArray[np.float64] = targets - (targets - fitted) / (1 - hat)
    border = float(side[inside].mean() + side[~inside].mean()) / 2
    return np.asarray(side - border)


def _settled(points: NDArray[np.float64], start: NDArray[np.bool_], *, grows: bool = True) -> NDArray[np.bool_]:
    """Return the part that a start becomes when images go to the side on which they lie, all or as many."""
    inside = start
    for _ in range(_PASSES):
        if _small(inside):
            break
        side = _sides_left_out(points, inside)
        told = side > 0
        if not grows:
            told = np.zeros_like(inside)
            told[np.argsort(-side, kind="stable")[: inside.sum()]] = True
        if (told == inside).all():
            break
        inside = told
    return inside
