"""What defences that compare the classes of a set say of it: outliers among many classes are poison."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from antibackdoor.types import Isolation, Verdict

__all__ = ["SMALLEST_CLASS", "isolation_of"]

SMALLEST_CLASS = 20
FEWEST_CLASSES = 8


def isolation_of(scores: Tensor, flagged: Tensor, evidence: Sequence[str], *, judged: int, classes: int) -> Isolation:
    """Return scores, flags, verdict and evidence; where few classes could be compared, the verdict is "undecided".

    Args:
        scores: float32 (N,), higher is more suspect.
        flagged: bool (N,).
        evidence: Sentences on the classes that were judged.
        judged: How many were; the others have under ``SMALLEST_CLASS`` images.
        classes: How many there are.
    """
    sentences = [*evidence]
    if judged < classes:
        sentences.append(f"{classes - judged} of {classes} classes are under {SMALLEST_CLASS} images and not judged.")
    verdict: Verdict = "poisoned" if bool(flagged.any()) else "no sign of poison"
    if judged < FEWEST_CLASSES:
        verdict = "undecided"
        sentences.append(f"Outliers among {judged} classes say little; {FEWEST_CLASSES} or more are needed.")
    return Isolation(scores, flagged, verdict, tuple(sentences))
