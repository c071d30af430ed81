"""The verdict on a set: what the cuts of its classes and the flagged images come to, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from antibackdoor.isolation.alarm import Alarm, AnyCut
from antibackdoor.isolation.cuts import Cut
from antibackdoor.types import ImageSet, Isolation, Verdict

__all__ = ["agree", "strongest", "verdict_of"]


def strongest(cuts: Iterable[AnyCut]) -> AnyCut:
    """Return the cut with the clearest evidence, of one or more."""
    return max(cuts, key=lambda cut: cut.strength)


def agree(one: Tensor, other: Tensor) -> bool:
    """Say whether two parts of a class, bool (n,), share half of the smaller one, or one of them is empty.

    Where poison is most of a class, its clean images are the ones that are hard, late and like no other class. What was
    learned all at once tells which part it is, so that is asked first, and what contradicts it is not suspected.
    """
    fewer = min(int(one.sum()), int(other.sum()))
    return 2 * int((one & other).sum()) >= fewer


def verdict_of(
    cuts: Mapping[int, Sequence[AnyCut]],
    data: ImageSet,
    flagged: Tensor,
    *,
    alarm: Alarm,
    let_go: Tensor | None = None,
    spared: Tensor | None = None,
    blind: str = "",
    words: Sequence[str] = (),
) -> Isolation:
    """Return scores, flags, verdict and the evidence in words.

    Args:
        cuts: Those of each class that could be cut, one or more, by label; none only if ``blind`` says why.
        data: The set.
        flagged: bool (N,).
        alarm: From how much evidence on a class counts as poisoned, or is not above suspicion.
        let_go: bool (N,), the classes that were suspected, and then not; none by default.
        spared: bool (N,), who would be suspected if no person vouched for them; none by default. A class in which those
            are all suspects is not in doubt.
        blind: Why there was too little to look at, or nothing.
        words: Sentences to add.

    Returns:
        Scores float32 (N,), 0 and more: strength of the clearest cut times the suspicion of the image in it; what is
        flagged lies above all others.
    """
    scores = torch.zeros(len(data))
    for cut in (cut for those in cuts.values() for cut in those):
        scores[cut.rows] = torch.maximum(scores[cut.rows], (cut.suspicion * cut.strength).float())
    # What is flagged comes first, whatever brought it there.
    scores = scores + flagged.float() * (scores.max() + 1)
    poisoned = [label for label in cuts if bool(flagged[data.labels == label].any())]
    vouched = [] if spared is None else [label for label in data.labels[spared].unique().tolist()]
    others = {label: _in_doubt(those, alarm) for label, those in cuts.items() if label not in (*poisoned, *vouched)}
    doubtful = {label: cut for label, cut in others.items() if cut is not None}
    sentences = [f"Too little to look at: {blind}."] if blind else []
    for label in poisoned:
        count, accuser = int((flagged & (data.labels == label)).sum()), _accuser(cuts[label], flagged, alarm)
        sentences.append(
            f"Class {data.classes[label]!r} is poisoned, about {count} images: it holds {accuser.kind} ("
            f"{accuser.figures}, {alarm.in_words(accuser)})."
        )
    for label, cut in doubtful.items():
        freed = let_go is not None and bool(let_go[data.labels == label].any())
        sentences.append(
            f"Class {data.classes[label]!r} is not above suspicion ({cut.figures}, {alarm.in_words(cut)}): "
            f"{_why(cut, alarm, freed=freed)}."
        )
    for label in vouched:
        count = int((spared & (data.labels == label)).sum()) if spared is not None else 0
        sentences.append(
            f"Of class {data.classes[label]!r} {count} images would be suspected if nobody vouched for them."
        )
    if not sentences:
        top = strongest(cut for those in cuts.values() for cut in those)
        sentences.append(
            f"No class falls apart into two kinds of images; nearest is {data.classes[top.label]!r} ({top.figures}, "
            f"{alarm.in_words(top)})."
        )
    verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or blind else "no sign of poison"
    unsure = [label for label in range(data.num_classes) if label not in poisoned] if blind else doubtful
    return Isolation(scores, flagged, verdict, (*sentences, *words), tuple(unsure))


def _accuser(cuts: Sequence[AnyCut], flagged: Tensor, alarm: Alarm) -> AnyCut:
    """Return the cut of a class to quote: the clearest of those that raise the alarm and mean what is flagged."""
    raised = [cut for cut in cuts if alarm.raised(cut)]
    meant = [cut for cut in raised if agree(cut.suspicion > 0.5, flagged[cut.rows])]
    return strongest(meant or raised or cuts)


def _in_doubt(cuts: Sequence[AnyCut], alarm: Alarm) -> AnyCut | None:
    """Return the cut that leaves a class under suspicion, if one does; the clearest, or that of a slow part."""
    clearest = strongest(cuts)
    if alarm.doubtful(clearest):
        return clearest
    return next((cut for cut in cuts if _unlearned(cut, alarm)), None)


def _unlearned(cut: AnyCut, alarm: Alarm) -> bool:
    """Say whether a class falls apart and may hold wrong labels that were not learned."""
    return isinstance(cut, Cut) and cut.hidden and alarm.torn(cut)


def _why(cut: AnyCut, alarm: Alarm, *, freed: bool) -> str:
    """Return why such a class is neither poisoned nor above suspicion, in words."""
    if freed:
        return "what was suspected there was let go, since a network that was not shown it does not reject it"
    if cut.untold:
        return "which of its two kinds of images is the poison cannot be told while hardly any of the other are learned"
    if _unlearned(cut, alarm):
        return "it may hold images with wrong labels that were not learned yet"
    return "the end of a whole training would tell" if cut.early else "clean classes seldom show as much"
