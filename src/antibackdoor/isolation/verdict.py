"""The verdict on a set: what the cuts of its classes and the flagged images come to, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from antibackdoor.isolation.alarm import Alarm, AnyCut
from antibackdoor.isolation.cuts import Cut
from antibackdoor.types import ImageSet, Isolation, Verdict

__all__ = ["strongest", "verdict_of"]


def strongest(cuts: Iterable[AnyCut]) -> AnyCut:
    """Return the cut with the clearest evidence, of one or more."""
    return max(cuts, key=lambda cut: cut.strength)


def verdict_of(
    cuts: Mapping[int, Sequence[AnyCut]],
    data: ImageSet,
    flagged: Tensor,
    *,
    alarm: Alarm,
    blind: str = "",
    early: bool = False,
    words: Sequence[str] = (),
) -> Isolation:
    """Return scores, flags, verdict and the evidence in words.

    Args:
        cuts: Those of each class that could be cut, one or more, by label.
        data: The set.
        flagged: bool (N,).
        alarm: From how much evidence on a class counts as poisoned, or is not above suspicion.
        blind: Why there was too little to look at, or nothing.
        early: The training was not finished.
        words: Sentences to add.
    """
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
        if isinstance(cut, Cut) and cut.hidden and alarm.torn(cut)
    }
    doubtful = {
        label: unlearned.get(label, cut) if cut.strength < alarm.doubt else cut
        for label, cut in clearest.items()
        if label not in poisoned and (cut.strength >= alarm.doubt or label in unlearned)
    }
    sentences = [f"Too little to look at: {blind}."] if blind else []
    for label in poisoned:
        count, cut = int((flagged & (data.labels == label)).sum()), clearest[label]
        sentences.append(
            f"Class {data.classes[label]!r} is poisoned, about {count} images: it holds {cut.kind} ({cut.figures}, "
            f"{alarm.in_words(cut)})."
        )
    rare = "the end of a whole training would tell" if early else "clean classes seldom show as much"
    for label, cut in doubtful.items():
        why = "it may hold images with wrong labels that were not learned yet" if cut is unlearned.get(label) else rare
        sentences.append(
            f"Class {data.classes[label]!r} is not above suspicion ({cut.figures}, {alarm.in_words(cut)}): {why}."
        )
    if not sentences:
        top = strongest(clearest.values())
        sentences.append(
            f"No class falls apart into two kinds of images; nearest is {data.classes[top.label]!r} ({top.figures}, "
            f"alarm at {alarm.at:.2f})."
        )
    verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or blind else "no sign of poison"
    return Isolation(scores, flagged, verdict, (*sentences, *words))
