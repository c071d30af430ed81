"""The network trained without the suspects is one more witness: what it makes of each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.decide import Decision
from antibackdoor.defences.witnesses.observe import Seen

__all__ = ["Adjudication", "adjudicate"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

# Share of a class's suspects that the network must reject for their labels to be wrong ones; where it accepts more,
# they carry their own labels and the evidence on the class has to be this much surer.
_WRONG, _SURER = 0.5, 0.1
# Probability of the own label from which the network accepts an image, and below which it rejects one.
_ACCEPTS, _REJECTS = 0.9, 0.1
# Posterior from which an image that is rejected may belong to the suspects.
_POSSIBLE = 0.01
# New suspects, as a share of those there are, that are worth another training.
_WORTH = 0.05


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


def adjudicate(
    logs: Floats, seen: Seen, decision: Decision, suspects: Bools, near: Bools, shown: Bools
) -> Adjudication:
    """Judge suspects and the rest of their classes by a network that was not shown them.

    Where it rejects most suspects of a class, their labels are wrong: those that it accepts and in which the encoder
    sees the class too are let go, and images that may belong to them and that it rejects, shown or not, are suspected
    too. Where it accepts most of them and the encoder sees the class in most, they carry the labels of what
    they show: clean-label poison, or no poison. Then the class stays accused only where the evidence is ten times as
    sure. What was left out of classes in doubt is judged alike, and suspected where it is rejected.

    Args:
        logs: float64 (N,), logarithm of the loss of every image in that network.
        seen: What the detector showed.
        decision: Made on it.
        suspects: bool (N,).
        near: bool (N,).
        shown: bool (N,), what the network was trained on.
    """
    own = np.exp(-np.exp(logs))  # probability of the own label
    suspects, near, cleared = suspects.copy(), near.copy(), False
    notes, missed_in_all, count = [], 0, int(suspects.sum())
    for one in decision.poisoned + decision.doubtful:
        (rows, of), name = one.part.views.with_copies, seen.data.classes[one.part.views.label]
        of_class = np.zeros_like(suspects)
        of_class[rows] = True
        accused = (suspects if one.adjusted <= decision.alpha else near & ~shown) & of_class
        if not accused.any():
            continue
        strange, possible = np.zeros_like(suspects), np.zeros_like(suspects)
        strange[rows], possible[rows] = one.strange[of], one.posterior[of] > _POSSIBLE
        rejected = float((own[accused] < 0.5).mean())
        if max(rejected, float(strange[accused].mean())) >= _WRONG:
            hidden = near & ~shown & ~accused & of_class
            freed = (accused | hidden) & (own > _ACCEPTS) & ~strange
            missed = (hidden | (possible & shown & ~accused)) & (own < _REJECTS)
            suspects = ((suspects | accused) & ~freed) | missed
            near = (near & ~freed) | missed
            missed_in_all += int((missed & shown).sum())
            notes.append(
                f"A network trained without the suspects of {name!r} rejects {100 * rejected:.0f} % of them; "
                f"{int((freed & accused).sum())} are let go, and {int(missed.sum())} more are suspected."
            )
        elif one.adjusted > _SURER * decision.alpha:
            suspects &= ~of_class
            near &= ~of_class
            cleared = True
            notes.append(
                f"A network trained without the suspects of {name!r} gives {100 * (1 - rejected):.0f} % of them their "
                "own label, and the evidence is not sure enough for poison with right labels: the class is cleared."
            )
        else:
            notes.append(
                f"A network trained without the suspects of {name!r} gives {100 * (1 - rejected):.0f} % of them their "
                "own label: poison with right labels, if it is poison."
            )
    changes = cleared or missed_in_all > _WORTH * max(1, count)
    return Adjudication(suspects, near, changes, tuple(notes))
