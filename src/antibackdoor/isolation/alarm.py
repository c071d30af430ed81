"""From how much evidence on: what raises the alarm, and what leaves a class under suspicion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self, TypeAlias

from antibackdoor.isolation.channels import ChannelCut
from antibackdoor.isolation.cuts import APART, Cut
from antibackdoor.isolation.late import LateCut

__all__ = ["Alarm", "AnyCut"]

# One class in two parts, by its losses, by what excites the network or by what was learned late.
AnyCut: TypeAlias = Cut | ChannelCut | LateCut

# What the alarm is multiplied by at a first look, where figures are noisier and nothing is lost by a second.
_EARLY = 2.0
# Share of the alarm's strength from which a class is neither poisoned nor free of suspicion.
_DOUBT = 0.9
# Gain from which a class is not above suspicion, whichever part fell further, unless its gap is narrow.
_UNCERTAIN = 0.8


@dataclass(frozen=True)
class Alarm:
    """What evidence on a class has to reach.

    Attributes:
        at: Strength (``Cut.strength``) from which a class counts as poisoned; infinity only measures.
        first: The same for a cut that is (``Cut.first``).
        doubt: Strength from which a class is not above suspicion.
        apart: Gain from which a slow part is suspected.
        uncertain: Gain from which a class whose slow part may be poison (``Cut.hidden``) is not above suspicion.
    """

    at: float
    first: float
    doubt: float
    apart: float = APART
    uncertain: float = _UNCERTAIN

    @classmethod
    def of(cls, strength: float, *, early: bool = False, sensitivity: float = 1.0) -> Self:
        """Return the alarm of a look.

        Args:
            strength: From which a class counts as poisoned at the end of a training.
            early: The training is not finished: it takes twice as much then, and what is between is doubtful.
            sensitivity: Divides everything.
        """
        end = strength / sensitivity
        at, doubt = (_EARLY * end, end) if early else (end, _DOUBT * end)
        return cls(at, end, doubt, APART / sensitivity, _UNCERTAIN / sensitivity)

    @classmethod
    def never(cls) -> Self:
        """Return one that is never raised: classes are cut, and nobody is suspected."""
        return cls(math.inf, math.inf, math.inf)

    @property
    def silent(self) -> bool:
        """Whether it is never raised."""
        return not math.isfinite(self.at)

    def level(self, cut: AnyCut) -> float:
        """Return the strength that a cut has to reach."""
        return self.first if isinstance(cut, Cut) and cut.first else self.at

    def raised(self, cut: AnyCut) -> bool:
        """Say whether the suspected part of a cut counts as poison; a slow part does, however strong."""
        return cut.slow or cut.strength >= self.level(cut)

    def torn(self, cut: Cut) -> bool:
        """Say whether a class falls apart so far that it is not above suspicion, if it hides a slow part."""
        return cut.gain >= self.uncertain

    def in_words(self, cut: AnyCut) -> str:
        """Return what a cut has to reach, in words."""
        return f"alarm at a gain of {self.apart:.2f}" if cut.slow else f"alarm at {self.level(cut):.2f}"
