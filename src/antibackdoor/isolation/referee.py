"""The referee: what a network that never saw the suspects says of them, and of those that it did see."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Ruling", "ruling"]

# The referee's median probability for the suspects' labels: above, the class may be let go; below, single images are.
_EASY, _WRONG = 0.9, 0.1


@dataclass(frozen=True, eq=False)
class Ruling:
    """What the referee says.

    Attributes:
        free: bool (N,), all images of the classes whose suspects were no poison.
        cleared: bool (N,), the suspects to let go, those of free classes among them.
        missed: bool (N,), others to suspect.
    """

    free: Tensor
    cleared: Tensor
    missed: Tensor


def ruling(
    suspects: Tensor,
    labels: Tensor,
    *,
    before: Tensor,
    after: Tensor,
    confident: float,
    shown: Tensor | None = None,
    near: Tensor | None = None,
    stays: Collection[int] = (),
    slow: Collection[int] = (),
) -> Ruling:
    """Judge the suspects by two networks.

    * Easy images of a clean class are accepted by a network that never saw them, so a class whose suspects are (median)
      is let go. So is poison accepted by a network that was shown some of it; hence ``stays``.
    * Poison with a wrong label is rejected by a network that has not learned the trigger. Clean-label poison carries
      the right label, so single images of it pass: only where the suspects of a class are clearly wrong (median) is one
      that is accepted let go.
    * Suspects that were slow to be accepted as their class are poison that is not learned yet, whose labels are wrong,
      or the hard images of a clean class. Where they are not clearly wrong (median), the class is let go unless it
      stays; where they are, every single one is that the second network rather accepts.
    * An image beside the suspects, of their class, that the second network rejects though it was shown it, and that the
      first was certain of, was learned with the trigger. So was one that it was not shown and clearly rejects. Where
      the suspects are clearly wrong (median), it is enough for one that is nearly like them, which it was not shown
      either, that the first network rather accepts it and the second clearly rejects it. Where nothing of a class was
      left to show, its word on that class says nothing: all of it is suspected then that the first network accepts.

    Args:
        suspects: bool (N,), some of them True; the second network was not trained on these.
        labels: int64 (N,), as observed.
        before: float (N,), probability that the first network, trained on everything, gives each image's own label.
        after: float (N,), the same of the second network.
        confident: Probability from which a network's word counts, above 0 and below 1.
        shown: bool (N,), what the second network was trained on; by default all but the suspects.
        near: bool (N,), images that are nearly like the suspects of their class; none by default.
        stays: Classes that are not let go, because the evidence is strong or more suspects turned up in them.
        slow: Classes whose suspects are their slow part.
    """
    free, cleared, alike = torch.zeros(3, len(labels), dtype=torch.bool)
    near = alike if near is None else near
    for label in labels[suspects].unique():
        of_class = labels == label
        own = after[suspects & of_class].median()
        if int(label) in slow:
            if own <= _WRONG:
                cleared |= suspects & of_class & (after >= 0.5)
            elif int(label) not in stays:
                free |= of_class
        elif own >= _EASY and int(label) not in stays:
            free |= of_class
        elif own <= _WRONG:
            cleared |= suspects & of_class & (after >= confident)
            alike = alike | (near & of_class & (before >= 0.5) & (after < _WRONG))
    remaining = labels[suspects & ~free].unique()
    beside = torch.isin(labels, remaining) & ~suspects
    rejected = after < (0.5 if shown is None else torch.where(shown, 0.5, _WRONG))
    missed = beside & (((before >= confident) & rejected) | alike)
    return Ruling(free, cleared | (suspects & free), missed)
