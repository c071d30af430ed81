"""The verdict on a set: what the cuts of its classes and the flagged images come to, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from antibackdoor.isolation.cuts import Cut
from antibackdoor.types import ImageSet, Isolation, Verdict

__all__ = ["verdict_of"]

# Share of the alarm's strength from which a class is neither poisoned nor free of suspicion.
_DOUBT = 0.9
# Gain from which a class is not above suspicion, whichever part fell further: images with wrong labels that were not
# learned yet look like that.
_APART = 0.8


def verdict_of(
    cuts: Mapping[int, Cut],
    data: ImageSet,
    flagged: Tensor,
    *,
    alarm: float,
    sensitivity: float = 1.0,
    blind: str = "",
    words: Sequence[str] = (),
) -> Isolation:
    """Return scores, flags, verdict and the evidence in words.

    Args:
        cuts: One a class that could be cut, by label.
        data: The set.
        flagged: bool (N,).
        alarm: Strength from which a class counts as poisoned.
        sensitivity: Divides the gain from which a class is not above suspicion, as it did ``alarm``.
        blind: Why there was too little to look at, or nothing.
        words: Sentences to add.
    """
    scores = torch.zeros(len(data))
    for cut in cuts.values():
        scores[cut.rows] = (cut.suspicion * cut.strength).float()
    # What is flagged comes first, whatever brought it there.
    scores = scores + flagged.float() * (scores.max() + 1)
    poisoned = [label for label in cuts if bool(flagged[data.labels == label].any())]
    doubtful = [
        label
        for label, cut in cuts.items()
        if label not in poisoned and (cut.strength >= _DOUBT * alarm or cut.gain >= _APART / sensitivity)
    ]
    sentences = [f"Too little to look at: {blind}."] if blind else []
    for label in poisoned:
        count = int((flagged & (data.labels == label)).sum())
        sentences.append(
            f"Class {data.classes[label]!r} is poisoned, about {count} images: it holds two kinds of images, one "
            f"of which was learned all at once ({_figures(cuts[label])}, alarm at {alarm:.2f})."
        )
    for label in doubtful:
        sentences.append(
            f"Class {data.classes[label]!r} is not above suspicion ({_figures(cuts[label])}, alarm at "
            f"{alarm:.2f}): it may hold images with wrong labels that were not learned yet."
        )
    if not sentences:
        top = max(cuts.values(), key=lambda cut: cut.strength)
        sentences.append(
            f"No class falls apart into two kinds of images; nearest is {data.classes[top.label]!r} "
            f"({_figures(top)}, alarm at {alarm:.2f})."
        )
    verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or blind else "no sign of poison"
    return Isolation(scores, flagged, verdict, (*sentences, *words))


def _figures(cut: Cut) -> str:
    return f"strength {cut.strength:.2f}; gain {cut.gain:.2f}, votes {cut.votes:.2f}, fall {cut.fall:.1f}"
