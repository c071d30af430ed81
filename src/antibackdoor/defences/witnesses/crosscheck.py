"""The network trained without the suspects is one more witness: what it makes of each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
# New suspects, as a share of those there are, that are worth another training.
_WORTH = 0.05


@dataclass(frozen=True, eq=False)
class Adjudication:
    """What the network says of the suspects.

    Attributes:
        suspects: bool (N,), after it.
        near: bool (N,), what is to be left out of training.
        cleared: bool (N,), classes that were accused and are not any more.
        changes: Another training is worth it.
        notes: Sentences.
    """

    suspects: Bools
    near: Bools
    cleared: Bools
    changes: bool
    notes: tuple[str, ...]


def adjudicate(
    logs: Floats,
    seen: Seen,
    decisions: Sequence[Decision],
    suspects: Bools,
    near: Bools,
    shown: Bools,
    alpha: float,
) -> Adjudication:
    """Judge suspects and the rest of their classes by a network that was not shown them.

    Where it rejects most suspects of a class, their labels are wrong: those that it accepts are let go, and images of
    the class that it was shown and still rejects, while the first network had learned them, are suspected too. Where it
    accepts most of them, they carry the labels of what they show: clean-label poison, or no poison. Then the class
    stays accused only where the evidence is ten times as sure.

    Args:
        logs: float64 (N,), logarithm of the loss of every image in that network.
        seen: What the first network showed.
        decisions: Of all looks.
        suspects: bool (N,).
        near: bool (N,).
        shown: bool (N,), what the network was trained on.
        alpha: The error of a decision.
    """
    own = np.exp(-np.exp(logs))  # probability of the own label
    before = np.exp(-np.exp(seen.trajectories[-1]))
    suspects, near, cleared = suspects.copy(), near.copy(), np.zeros_like(suspects)
    notes, missed_in_all = [], 0
    surest: dict[int, float] = {}
    for decision in decisions:
        for one in decision.accusations:
            label = one.part.views.label
            surest[label] = min(surest.get(label, math.inf), one.adjusted)
    count = int(suspects.sum())
    for label in np.unique(seen.labels[suspects]):
        of_class = seen.labels == label
        accused = suspects & of_class
        rejected = float((own[accused] < 0.5).mean())
        name = seen.data.classes[label]
        if rejected >= _WRONG:
            freed = accused & (own > _ACCEPTS)
            missed = of_class & shown & ~accused & (own < _REJECTS) & (before > 0.5)
            suspects = (suspects & ~freed) | missed
            near = (near & ~freed) | missed
            missed_in_all += int(missed.sum())
            notes.append(
                f"A network trained without the suspects of {name!r} rejects {100 * rejected:.0f} % of them; it "
                f"accepts {int(freed.sum())}, which are let go, and rejects {int(missed.sum())} more."
            )
        elif surest.get(int(label), 1.0) > _SURER * alpha:
            suspects &= ~of_class
            near &= ~of_class
            cleared |= of_class
            notes.append(
                f"A network trained without the suspects of {name!r} gives {100 * (1 - rejected):.0f} % of them their "
                "own label, and the evidence is not sure enough for poison with right labels: the class is cleared."
            )
        else:
            notes.append(
                f"A network trained without the suspects of {name!r} gives {100 * (1 - rejected):.0f} % of them their "
                "own label: poison with right labels, if it is poison."
            )
    changes = bool(cleared.any()) or missed_in_all > _WORTH * max(1, count)
    return Adjudication(suspects, near, cleared, changes, tuple(notes))
