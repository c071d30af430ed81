"""From how much evidence on: what raises the alarm, and what leaves a class under suspicion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from antibackdoor.isolation.channels import ChannelCut
from antibackdoor.isolation.cuts import APART, Cut
from antibackdoor.isolation.late import LateCut

__all__ = ["Alarm", "AnyCut", "share_of_clean"]

# One class in two parts, by its losses, by what excites the network or by what was learned late.
AnyCut: TypeAlias = Cut | ChannelCut | LateCut

# What the alarm is multiplied by at a first look, where figures are noisier and nothing is lost by a second.
_EARLY = 2.0
# Share of the alarm's strength from which a class is neither poisoned nor free of suspicion, at the end of a training.
_DOUBT = 0.9
# Gain from which a class is not above suspicion, whichever part fell further, unless its gap is narrow.
_UNCERTAIN = 0.8
# The largest strength of any class and kind of cut in a clean training, mean and standard deviation over 17 trainings
# of CIFAR-10 and Fashion-MNIST (benchmarks/calibrate.py; tests/isolation/test_alarm.py reads the records): at a first
# look, and at the end.
_CLEAN = {True: (0.33, 0.12), False: (0.28, 0.13)}
# Smallest share that so few trainings are taken to tell.
_RARE = 0.01


@dataclass(frozen=True)
class Alarm:
    """What evidence on a class has to reach, which depends on the look that it is of.

    Attributes:
        strength: From which (``Cut.strength``, above 0) a class counts as poisoned at the end of a training; infinity
            only measures. A first look takes twice that, and what is between is doubtful; but for a class that is
            learned before all others (``Cut.first``).
        sensitivity: Above 0; divides every strength and gain here, but no gap and no votes.
    """

    strength: float
    sensitivity: float = 1.0

    @staticmethod
    def never() -> Alarm:
        """Return one that is never raised: classes are cut, and nobody is suspected."""
        return Alarm(math.inf)

    @property
    def silent(self) -> bool:
        """Whether it is never raised."""
        return not math.isfinite(self.strength)

    @property
    def apart(self) -> float:
        """Gain from which a slow part is suspected."""
        return APART / self.sensitivity

    def at(self, *, early: bool) -> float:
        """Return the strength from which a class counts as poisoned, at a first look or at the end of a training."""
        return (_EARLY if early else 1.0) * self.strength / self.sensitivity

    def level(self, cut: AnyCut) -> float:
        """Return the strength that a cut has to reach."""
        first = isinstance(cut, Cut) and cut.first
        return self.at(early=cut.early and not first)

    def raised(self, cut: AnyCut) -> bool:
        """Say whether the suspected part of a cut counts as poison; a slow part does, however strong."""
        return cut.slow or (cut.strength >= self.level(cut) and not cut.untold)

    def doubtful(self, cut: AnyCut) -> bool:
        """Say whether a cut leaves its class under suspicion by its strength."""
        return cut.strength >= (1.0 if cut.early else _DOUBT) * self.at(early=False)

    def torn(self, cut: Cut) -> bool:
        """Say whether a class falls apart so far that it is under suspicion if it hides a slow part."""
        return cut.gain >= _UNCERTAIN / self.sensitivity

    def in_words(self, cut: AnyCut) -> str:
        """Return what a cut has to reach, in words."""
        if cut.slow:
            return f"alarm at a gain of {self.apart:.2f}"
        if isinstance(cut, Cut) and self.torn(cut) and not self.doubtful(cut):
            return f"in doubt from a gain of {_UNCERTAIN / self.sensitivity:.2f}"
        share = share_of_clean(cut.strength, early=cut.early)
        often = f"fewer than {100 * _RARE:.0f}" if share < _RARE else f"about {100 * share:.0f}"
        return f"alarm at {self.level(cut):.2f}; {often} in 100 clean trainings reach as much"


def share_of_clean(strength: float, *, early: bool) -> float:
    """Return the share of clean trainings in which some class is as strong, 0 to 1: how likely a false alarm is.

    The maximum over all classes and kinds of cuts is taken to be spread like a Gumbel distribution. What it is of the
    user's own images nobody knows; the measured ones are two sets of small pictures and two small networks.

    Args:
        strength: Of the strongest class.
        early: At a first look, or at the end of a training.
    """
    mean, spread = _CLEAN[early]
    scale = spread * math.sqrt(6) / math.pi
    return -math.expm1(-math.exp(-(strength - mean) / scale - np.euler_gamma))
