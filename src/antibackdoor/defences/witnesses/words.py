"""The decision in words: verdict, scores and one sentence for what was found, made from the figures in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.decide import Accusation, Decision
from antibackdoor.defences.witnesses.limit import SHARES, Limit
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.views import SMALLEST_CLASS
from antibackdoor.types import Finding, Isolation, Verdict

__all__ = ["isolation_of"]

_NAMED = 5  # classes that a sentence names
_KINDS = {
    "mixture": "a group of images by how they were learned and what is seen in them",
    "picture": "a group of images by how they were learned, what is seen in them and a picture that they share",
    "style": "a group of images by how they were learned, what is seen in them and how they are made",
    "origin": "images that look like {!r} but share a picture that other images of it lack",
}


def isolation_of(
    seen: Seen,
    decision: Decision,
    suspects: NDArray[np.bool_],
    notes: Sequence[str],
    *,
    scanned: bool,
    limit: Limit | None = None,
) -> Isolation:
    """Return scores, flags, verdict and the evidence in words.

    Args:
        seen: What was observed.
        decision: Made on it.
        suspects: bool (N,), what is flagged.
        notes: Sentences to add.
        scanned: The detector alone has looked.
        limit: What would have been found, where nothing was.
    """
    scores = decision.scores + suspects * (decision.scores.max(initial=0) + 1)
    poisoned = set(seen.labels[suspects].tolist())
    sizes = np.bincount(seen.labels, minlength=seen.data.num_classes)
    surest = {one.part.views.label: one for one in decision.accusations}
    # Without a training to try them, classes are in doubt that it would have cleared.
    doubtful = {one.part.views.label for one in (decision.tried if scanned else decision.doubtful)} - poisoned
    sentences, findings = [], [_finding(surest[label], "poisoned") for label in sorted(poisoned & set(surest))]
    findings += [_finding(surest[label], "in doubt") for label in sorted(doubtful)]
    for label in sorted(poisoned):
        count = int((suspects & (seen.labels == label)).sum())
        shown = f": {_described(surest[label], seen)}" if label in surest else ""
        sentences.append(f"Class {seen.data.classes[label]!r} is poisoned, about {count} images{shown}.")
    for label in sorted(doubtful):
        sentences.append(f"Class {seen.data.classes[label]!r} is in doubt: {_described(surest[label], seen)}.")
    unseen = [label for label in np.flatnonzero(sizes).tolist() if label not in surest]
    # Most images are in classes that were not looked at, or no class could have shown anything.
    in_no_class = limit is not None and limit.blind
    blind = 2 * int(sizes[unseen].sum()) > int(sizes.sum()) or in_no_class
    if not surest:
        sentences.append(f"Too little to look at: no class has {SMALLEST_CLASS} images that fall into two kinds.")
    elif not sentences:
        nearest = min(surest.values(), key=lambda one: one.p_value)
        name = seen.data.classes[nearest.part.views.label]
        findings.append(_finding(nearest, "nearest"))
        sentences.append(f"No class shows what poison shows; nearest is {name!r}: {_described(nearest, seen)}.")
    if surest and unseen:
        names = ", ".join(repr(seen.data.classes[label]) for label in unseen[:_NAMED])
        more = f" and {len(unseen) - _NAMED} more" if len(unseen) > _NAMED else ""
        sentences.append(
            f"Not looked at: {names}{more}, of under {SMALLEST_CLASS} images or with nothing that tells them apart."
        )
    if limit is not None:
        sentences.append(_limit_of(limit, seen))
    with_what = "without an encoder" if seen.witness == "none" else f"with the encoder {seen.witness} as second witness"
    what = "A detector trained without augmentation" if scanned else "A detector and a network trained on what it left"
    sentences.append(f"{what} looked, {with_what}; a backdoor that neither has learned is not seen.")
    verdict: Verdict = "poisoned" if poisoned else "undecided" if doubtful or blind else "no sign of poison"
    flags = torch.from_numpy(suspects.copy())
    unsure = tuple(sorted(doubtful | set(np.flatnonzero(sizes).tolist() if in_no_class else unseen if blind else ())))
    return Isolation(torch.from_numpy(scores).float(), flags, verdict, (*sentences, *notes), unsure, tuple(findings))


def _finding(one: Accusation, status: Literal["poisoned", "in doubt", "nearest"]) -> Finding:
    label, images = one.part.views.label, int((one.posterior > 0.5).sum())
    return Finding(label, status, one.part.source, images, one.adjusted, one.figures, one.source)


def _described(one: Accusation, seen: Seen) -> str:
    figures = ", ".join(f"{name} {value:.2f}" for name, value in one.figures.items())
    kind = _KINDS[one.part.source]
    if one.source is not None:
        kind = kind.format(seen.data.classes[one.source])
    return f"{kind}, {int((one.posterior > 0.5).sum())} in all ({figures}; adjusted p {one.adjusted:.2g})"


def _limit_of(limit: Limit, seen: Seen) -> str:
    name = seen.data.classes[limit.label]
    found = [
        f"{kind} from {100 * share:g} % of all images on" if share else f"{kind} not even in {100 * SHARES[-1]:g} %"
        for kind, share in limit.found.items()
    ]
    return (
        f"Planted into what was seen of class {name!r}, on images of other classes, these would have been found by the "
        f"look alone if they are learned: {', '.join(found)}; less, or what is learned later, may be missed."
    )
