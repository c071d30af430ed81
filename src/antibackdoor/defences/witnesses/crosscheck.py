"""The network trained without the suspects is one more witness: what it makes of each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.decide import Accusation, Decision
from antibackdoor.defences.witnesses.evidence import entropy
from antibackdoor.defences.witnesses.observe import Seen

__all__ = ["Adjudication", "Judged", "adjudicate"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Share of a class's suspects that the network must reject for their labels to be wrong ones; where it accepts more,
# they carry their own labels and the evidence on the class has to be this much surer.
_WRONG, _SURER = 0.5, 0.1
# Probability of the own label from which the network accepts an image, and below which it rejects one.
_ACCEPTS, _REJECTS = 0.9, 0.1
# Posterior from which an image that is rejected may belong to the suspects.
_POSSIBLE = 0.01
# New suspects, as a share of those there are, that are worth another training.
_WORTH = 0.05
# Entropy of the classes that are seen in rejected suspects, as a share of the largest that there could be, from which
# they come from everywhere: an odd kind of a clean class looks like one or two other classes.
_EVERYWHERE = 0.7


@dataclass(frozen=True, eq=False)
class Judged:
    """What a network that was not shown some images makes of all of them.

    Attributes:
        own: float64 (N,), probability of the own label.
        seen: int64 (N,), class with the highest.
    """

    own: Floats
    seen: Ints


@dataclass(frozen=True, eq=False)
class Adjudication:
    """What the network says of the suspects.

    Attributes:
        suspects: bool (N,), after it.
        near: bool (N,), what is to be left out of training.
        changes: Another training is worth it.
        notes: Sentences.
    """

    suspects: Bools
    near: Bools
    changes: bool
    notes: tuple[str, ...]


def adjudicate(judged: Judged, seen: Seen, decision: Decision, suspects: Bools, near: Bools) -> Adjudication:
    """Judge suspects and the rest of their classes by a network that was not shown them.

    Where it rejects most suspects of a class, their labels are wrong: those that it accepts and in which the encoder
    sees the class too are let go, and images that may belong to them and that it rejects, shown or not, are suspected
    too. Where it accepts most of them and the encoder sees the class in most, they carry the labels of what
    they show: clean-label poison, or no poison. Then the class stays accused only where the evidence is ten times as
    sure. A class that is on trial, since the evidence alone does not suffice, is accused where the network rejects most
    of what was left out of it and sees other classes of all kinds there; else it is cleared.

    Args:
        judged: What the network makes of every image.
        seen: What the detector showed.
        decision: Made on it.
        suspects: bool (N,).
        near: bool (N,), what was left out of training.
    """
    case = _Case(judged, seen, suspects, near)
    for one in decision.poisoned:
        case.judge(one, suspects, sure=one.adjusted <= _SURER * decision.alpha)
    for one in decision.tried:
        case.judge(one, near, on_trial=True)
    changes = case.cleared or case.missed > _WORTH * max(1, int(suspects.sum()))
    return Adjudication(case.suspects, case.near, changes, tuple(case.notes))


class _Case:
    """One set before its network: who is suspected and left out by now, and what was said."""

    def __init__(self, judged: Judged, seen: Seen, suspects: Bools, near: Bools) -> None:
        self.judged, self.seen, self.hidden = judged, seen, near
        self.suspects, self.near = suspects.copy(), near.copy()
        self.notes: list[str] = []
        self.cleared, self.missed = False, 0

    def judge(self, one: Accusation, accused: Bools, *, sure: bool = False, on_trial: bool = False) -> None:
        """Judge one class by what is accused of it, bool (N,)."""
        (rows, of), name = one.part.views.with_copies, self.seen.data.classes[one.part.views.label]
        of_class = np.zeros_like(self.suspects)
        of_class[rows] = True
        accused = accused & of_class
        if not accused.any():
            return
        strange, possible = np.zeros_like(accused), np.zeros_like(accused)
        strange[rows], possible[rows] = one.strange[of], one.posterior[of] > _POSSIBLE
        rejected = float((self.judged.own[accused] < 0.5).mean())
        verdict = f"A network trained without the suspects of {name!r} "
        if on_trial and (rejected < _WRONG or not self._from_everywhere(accused, one.part.views.label)):
            self._clear(of_class)
            self.notes.append(
                f"{verdict}rejects {100 * rejected:.0f} % of them, and does not see all kinds of classes in them: "
                "they are not left out."
            )
        elif on_trial or max(rejected, float(strange[accused].mean())) >= _WRONG:
            freed, missed = self._extend(accused, of_class, strange, possible)
            self.notes.append(
                f"{verdict}rejects {100 * rejected:.0f} % of them; {freed} are let go, and {missed} more are suspected."
            )
        elif sure:
            self.notes.append(
                f"{verdict}gives {100 * (1 - rejected):.0f} % of them their own label: poison with right labels, if it "
                "is poison."
            )
        else:
            self._clear(of_class)
            self.notes.append(
                f"{verdict}gives {100 * (1 - rejected):.0f} % of them their own label, and the evidence is not sure "
                "enough for poison with right labels: the class is cleared."
            )

    def _clear(self, of_class: Bools) -> None:
        self.suspects &= ~of_class
        self.near &= ~of_class
        self.cleared = True

    def _extend(self, accused: Bools, of_class: Bools, strange: Bools, possible: Bools) -> tuple[int, int]:
        """Let go what is accepted, suspect what is rejected; return how many of each."""
        own, beside = self.judged.own, self.hidden & ~accused & of_class
        freed = (accused | beside) & (own > _ACCEPTS) & ~strange
        missed = (beside | (possible & ~self.hidden & ~accused)) & (own < _REJECTS)
        self.suspects = ((self.suspects | accused) & ~freed) | missed
        self.near = (self.near & ~freed) | missed
        self.missed += int((missed & ~self.hidden).sum())
        return int((freed & accused).sum()), int(missed.sum())

    def _from_everywhere(self, accused: Bools, label: int) -> bool:
        """Whether what the network sees in those that it rejects are other classes of all kinds."""
        others = self.judged.seen[accused & (self.judged.own < 0.5) & (self.judged.seen != label)]
        possible = min(self.seen.data.num_classes - 1, len(others))
        return possible > 1 and entropy(others) >= _EVERYWHERE * np.log(possible)
