"""From a verdict to what to do: the first sentence of every report, what was looked at, what would make it surer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from antibackdoor.defences.against import AGAINST
from antibackdoor.defences.witnesses.views import SMALLEST_CLASS
from antibackdoor.stored import StoredRun

__all__ = ["Advice", "advise"]

_NAMED = 3  # classes that a sentence names
_JUDGES, _FORMER = "witnesses", "filter"  # the default, and what it replaced, whose runs are still read
_DETECTOR = "detector "  # phases of the small network that looks for the witnesses
_LITTLE = 0.5  # share of labels below which most of the set was not learned, so that most poison may not have been
_SURE = math.log(2)  # a loss below: more than half of the probability is on the label


@dataclass(frozen=True)
class Advice:
    """What a reader of a verdict needs besides it.

    Attributes:
        next: What to do, in a sentence.
        looked: What was looked at.
        surer: What would make the verdict surer, a sentence each; none where nothing is known that would.
    """

    next: str
    looked: str
    surer: tuple[str, ...]


def advise(run: StoredRun) -> Advice:
    """Return what follows from the verdict on a run.

    Args:
        run: A finished run.
    """
    verdict = run.record.verdict
    step = _poisoned(run) if verdict == "poisoned" else _clear(run) if verdict == "no sign of poison" else _open(run)
    return Advice(step, _looked(run), tuple(_surer(run)))


def _poisoned(run: StoredRun) -> str:
    """Say what to do with a poisoned set, and which class to look at first."""
    held = np.bincount(run.labels[run.flagged], minlength=len(run.classes))
    first = [label for label in np.argsort(-held, kind="stable").tolist() if held[label]]
    where = f", first those of {_names(run, first)}" if first else ""
    return (
        f"Do not train on this set as it is: look at the {_count(int(run.flagged.sum()), 'suspect')}{where}, take out "
        "what does not belong there, and scan again."
    )


def _clear(run: StoredRun) -> str:
    """Say what to do where there is no sign of poison, or was little to see it in."""
    if _defence(run) == AGAINST:
        return "Nothing in the batch stands out from the earlier set; scan both together before you train on them."
    _, sure = _training(run)
    if sure is not None and sure < _LITTLE:
        command = "`antibackdoor train`" if _is_scan(run) else "more epochs (`--epochs`)"
        return (
            f"Nothing was found, but do not take the set for clean yet: the network was sure of only {_floor(sure)} % "
            f"of the labels when it was looked at, so train it further, with {command}."
        )
    if _is_scan(run):
        return "Nothing was found to take out; use the set, with the care that data from an unknown source deserve."
    return "Nothing was found to take out; use the network, with the care that data from an unknown source deserve."


def _open(run: StoredRun) -> str:
    """Say what to do where a set is neither poisoned nor above suspicion, or was not judged."""
    unsure = [label for label, verdict in enumerate(run.class_verdicts) if verdict == "undecided"]
    if _defence(run) == AGAINST:
        return (
            "Do not take this batch in as it is: look at its most suspect images, first those of "
            f"{_names(run, unsure)}, ask where they come from, and take out what does not belong there."
        )
    if not _judges(run):
        return (
            "The defence of this run does not judge the set, so do not take it for clean: scan it with the default "
            "defence (`antibackdoor scan DATA --out RUN`)."
        )
    if len(unsure) == len(run.classes):
        if _most_in_small_classes(run):
            return (
                f"This set cannot be cleared as it is: have {SMALLEST_CLASS} images a class, better a few hundred, and "
                "scan again."
            )
        return (
            "Do not take this set for clean: this run could clear no class. Look at the most suspect images, and train "
            "for more epochs (`--epochs`)."
        )
    again = "scan" if _is_scan(run) else "train"
    return (
        f"Do not take this set for clean yet: look at the most suspect images of {_names(run, unsure)}, and {again} "
        "with another `--seed`."
    )


def _looked(run: StoredRun) -> str:
    """Say how many images there were to look at, for how long, and how much of them was learned."""
    sizes = _sizes(run)
    spread = f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"
    text = f"Looked at: {_count(len(run.ids), 'image')} in {_count(len(sizes), 'class', 'classes')} of {spread}"
    if _defence(run) == AGAINST:
        return f"{text}, beside what was kept of an earlier set. Nothing was trained."
    epochs, sure = _training(run)
    if epochs:
        text += f", after {_count(epochs, 'epoch')}"
    if sure is not None:
        text += f", when the network was sure of {_floor(sure)} % of the labels (probability over one half)"
    return f"{text}. What a network does not learn, it does not show."


def _surer(run: StoredRun) -> Iterator[str]:
    """Yield what would make a verdict surer, as far as the run tells."""
    if run.record.verdict == "poisoned" or not (_judges(run) or run.record.verdict):
        return
    if _defence(run) == AGAINST:
        yield "A scan of both sets together, by the default defence, which sees how they are learned."
        return
    if _defence(run) == _FORMER:
        yield f"A scan with {_JUDGES!r}, which replaces the defence of this run and sees more."
    if small := int((_sizes(run) < SMALLEST_CLASS).sum()):
        yield (
            f"More images: {_count(small, 'class has', 'classes have')} under {SMALLEST_CLASS}, too few to be "
            "looked at."
        )
    if _judges(run):
        yield "Another seed (`--seed 1`), or more epochs (`--epochs`): a verdict that changes is none."


def _training(run: StoredRun) -> tuple[int, float | None]:
    """Return the epochs of the first network, and the share of labels that it was sure of at their end."""
    own = [row for row, phase in enumerate(run.phases) if phase in (run.phases[0], "train")]
    if run.phases and run.phases[0].startswith(_DETECTOR):  # which trains an epoch a phase
        own = [row for row, phase in enumerate(run.phases) if phase.startswith(_DETECTOR)]
    if not own:
        return 0, None
    last = run.losses[own[-1]]
    known = np.isfinite(last)
    return len(own), float((last[known] < _SURE).mean()) if known.any() else None


def _judges(run: StoredRun) -> bool:
    """Say whether the defence of a run judges a set at all; others rank images and leave every set undecided."""
    return (
        _defence(run) in (_JUDGES, _FORMER)
        or bool(run.doubtful)
        or run.record.verdict in ("poisoned", "no sign of poison")
    )


def _defence(run: StoredRun) -> object:
    defence = run.record.config.get("defence")
    return defence.get("name") if isinstance(defence, dict) else None


def _sizes(run: StoredRun) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.bincount(run.labels, minlength=len(run.classes))


def _most_in_small_classes(run: StoredRun) -> bool:
    sizes = _sizes(run)
    return 2 * int(sizes[sizes < SMALLEST_CLASS].sum()) > int(sizes.sum())


def _is_scan(run: StoredRun) -> bool:
    return run.record.data.get("scan") is True


def _names(run: StoredRun, labels: list[int]) -> str:
    """Return "class 'a'", "classes 'a' and 'b'", or the first of many."""
    names = [repr(run.classes[label]) for label in labels[:_NAMED]]
    if len(labels) > _NAMED:
        return f"classes {', '.join(names)} and {len(labels) - _NAMED:,} more"
    if len(names) == 1:
        return f"class {names[0]}"
    return f"classes {', '.join(names[:-1])} and {names[-1]}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _floor(share: float) -> int:
    """Return a share in per cent, rounded down, so that what is not all is not called so."""
    return math.floor(100 * share)
