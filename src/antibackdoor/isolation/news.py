"""Cutting every class by what the network has learned to see in its images since half-way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from antibackdoor.isolation.cuts import LAST, learned
from antibackdoor.isolation.late import LateCut, gap_between, was_hard

__all__ = ["NewCut", "new_cuts", "news"]

_FLOOR = 1e-6
_PENALTY = 0.01
# Rows that are in float64 at once.
_ROWS = 8192
# Share of the images learned since that the search starts from: those whose losses fell furthest.
_START = 1 / 3


@dataclass(frozen=True, eq=False)
class NewCut(LateCut):
    """One class in two parts: images learned since in which the network now sees what it did not see; the rest.

    Attributes: as of ``LateCut``; the sides are those of what is new.
    """

    # Frames of one scene may be learned together, and then what they show is new.
    much: ClassVar[float] = 0.6

    @property
    def kind(self) -> str:
        """What was found, in words."""
        return "two kinds of images, one of which was learned when the network began to see something in it alone"


def new_cuts(
    losses: Tensor, half: int, earlier: Tensor, seen: Tensor, labels: Tensor, fitted: Tensor | None = None
) -> list[NewCut]:
    """Cut every class that has 100 images to fit to, and 20 to start from.

    The start is the third whose losses fell furthest of the images of a class that were learned after half-way. In a
    clean class these have little in common. Poison that was learned since has all of it in common: the network began to
    see the trigger. So its images are alike in what is new in them (:func:`news`), where what they show, which the
    network knew before, is taken out. The part keeps the number of the start and changes its members until it settles.

    Args:
        losses: float (E, N), of the whole training.
        half: Epochs until half-way.
        earlier: float (N, D), what the network made of the images half-way.
        seen: float (N, D), what it makes of them when it is trained.
        labels: int64 (N,).
        fitted: bool (N,), images to fit to; all by default.

    Returns:
        One cut a class that could be cut and whose part was hard, in the order of labels.

    Source:
        Ours (docs/log.md).
    """
    new = news(earlier, seen)
    found = []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        gap = gap_between(new, labels, label, _start(losses[:, rows], half), fitted, grows=False)
        if gap is not None and gap.gain != 0 and was_hard(losses[:half, rows[gap.inside]]):
            found.append(NewCut(label, rows, gap.inside.double(), gap.gain, gap.common))
    return found


def news(earlier: Tensor, seen: Tensor) -> Tensor:
    """Return what is new in what a network sees: float32 (N, D), the residuals of a ridge regression on what it saw.

    Sums are in float64, of some thousand images at a time: a large set does not fit twice.

    Args:
        earlier: float (N, D), half-way.
        seen: float (N, D), when it is trained.
    """
    before, after = (_Scale.of(values) for values in (earlier, seen))
    square = _PENALTY * len(seen) * torch.eye(earlier.shape[1], dtype=torch.float64)
    cross = torch.zeros(earlier.shape[1], seen.shape[1], dtype=torch.float64)
    parts = list(zip(earlier.split(_ROWS), seen.split(_ROWS), strict=True))
    for one, other in parts:
        known = before(one)
        square += known.T @ known
        cross += known.T @ after(other)
    weights: Tensor = torch.linalg.solve(square, cross)
    return torch.cat([(after(other) - before(one) @ weights).float() for one, other in parts])


@dataclass(frozen=True, eq=False)
class _Scale:
    """Mean and standard deviation of columns, float64 (D,) each, which it takes out of rows."""

    mean: Tensor
    spread: Tensor

    @staticmethod
    def of(values: Tensor) -> _Scale:
        mean = values.mean(0, dtype=torch.float64)
        squares = torch.zeros_like(mean)
        for rows in values.split(_ROWS):
            squares += (rows.double() - mean).square().sum(0)
        return _Scale(mean, (squares / len(values)).sqrt().clamp_min(_FLOOR))

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows.double() - self.mean) / self.spread


def _start(losses: Tensor, half: int) -> Tensor:
    """Return the images to start from: bool (n,)."""
    since = learned(losses) & ~learned(losses[:half])
    parts = (losses[max(0, half - LAST) : half], losses[-LAST:])
    before, last = (part.mean(0).clamp_min(_FLOOR).log() for part in parts)
    fall = torch.where(since, before - last, -torch.inf)
    start = torch.zeros_like(since)
    start[fall.argsort(descending=True, stable=True)[: round(_START * int(since.sum()))]] = True
    return start
