"""The verdict on a set: what the cuts of its classes and the flagged images come to, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from antibackdoor.isolation.channels import ChannelCut
from antibackdoor.isolation.cuts import APART, Cut
from antibackdoor.isolation.late import LateCut
from antibackdoor.types import ImageSet, Isolation, Verdict

__all__ = ["DOUBT", "UNCERTAIN", "AnyCut", "alarm_for", "strongest", "verdict_of"]

# One class in two parts, by its losses, by what excites the network or by what was learned late.
AnyCut: TypeAlias = Cut | ChannelCut | LateCut

# Share of the alarm's strength from which a class is neither poisoned nor free of suspicion.
DOUBT = 0.9
# Gain from which a class is not above suspicion, whichever part fell further, unless its gap is narrow.
UNCERTAIN = 0.8


def strongest(cuts: Iterable[AnyCut]) -> AnyCut:
    """Return the cut with the clearest evidence, of one or more."""
    return max(cuts, key=lambda cut: cut.strength)


def alarm_for(cut: AnyCut, alarm: float, first: float | None) -> float:
    """Return the strength from which a cut counts: ``first``, where given, for one that is (``Cut.first``)."""
    return first if first is not None and isinstance(cut, Cut) and cut.first else alarm


def verdict_of(
    cuts: Mapping[int, Sequence[AnyCut]],
    data: ImageSet,
    flagged: Tensor,
    *,
    alarm: float,
    first: float | None = None,
    doubt: float | None = None,
    sensitivity: float = 1.0,
    blind: str = "",
    early: bool = False,
    words: Sequence[str] = (),
) -> Isolation:
    """Return scores, flags, verdict and the evidence in words.

    Args:
        cuts: Those of each class that could be cut, one or more, by label.
        data: The set.
        flagged: bool (N,).
        alarm: Strength from which a class counts as poisoned.
        first: The same for a cut that is (``Cut.first``); ``alarm`` by default.
        doubt: Strength from which a class is not above suspicion; ``DOUBT * alarm`` by default.
        sensitivity: Divides the gain from which a class is not above suspicion, as it did ``alarm``.
        blind: Why there was too little to look at, or nothing.
        early: The training was not finished.
        words: Sentences to add.
    """

    def alarm_in_words(cut: AnyCut) -> str:
        if cut.slow:
            return f"alarm at a gain of {APART / sensitivity:.2f}"
        return f"alarm at {alarm_for(cut, alarm, first):.2f}"

    doubt = DOUBT * alarm if doubt is None else doubt
    scores = torch.zeros(len(data))
    for cut in (cut for those in cuts.values() for cut in those):
        scores[cut.rows] = torch.maximum(scores[cut.rows], (cut.suspicion * cut.strength).float())
    # What is flagged comes first, whatever brought it there.
    scores = scores + flagged.float() * (scores.max() + 1)
    clearest = {label: strongest(those) for label, those in cuts.items()}
    poisoned = [label for label in cuts if bool(flagged[data.labels == label].any())]
    unlearned = {
        label: cut
        for label, those in cuts.items()
        for cut in those
        if isinstance(cut, Cut) and cut.hidden and cut.gain >= UNCERTAIN / sensitivity
    }
    doubtful = {
        label: unlearned.get(label, cut) if cut.strength < doubt else cut
        for label, cut in clearest.items()
        if label not in poisoned and (cut.strength >= doubt or label in unlearned)
    }
    sentences = [f"Too little to look at: {blind}."] if blind else []
    for label in poisoned:
        count, cut = int((flagged & (data.labels == label)).sum()), clearest[label]
        sentences.append(
            f"Class {data.classes[label]!r} is poisoned, about {count} images: it holds {cut.kind} ({cut.figures}, "
            f"{alarm_in_words(cut)})."
        )
    rare = "the end of a whole training would tell" if early else "clean classes seldom show as much"
    for label, cut in doubtful.items():
        why = "it may hold images with wrong labels that were not learned yet" if cut is unlearned.get(label) else rare
        sentences.append(
            f"Class {data.classes[label]!r} is not above suspicion ({cut.figures}, {alarm_in_words(cut)}): {why}."
        )
    if not sentences:
        top = strongest(clearest.values())
        sentences.append(
            f"No class falls apart into two kinds of images; nearest is {data.classes[top.label]!r} ({top.figures}, "
            f"alarm at {alarm:.2f})."
        )
    verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or blind else "no sign of poison"
    return Isolation(scores, flagged, verdict, (*sentences, *words))
