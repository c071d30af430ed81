"""One look at a training: every class cut in two in several ways, and who is suspected for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.alarm import Alarm, AnyCut
from antibackdoor.isolation.channels import SMALLEST_PART, channel_maxima, cut_by_channels
from antibackdoor.isolation.cuts import APART, Cut, cut_classes, learned, sharpened, slow_cuts, start_of
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.late import LateCut, gap_between, late_cuts
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.news import new_cuts
from antibackdoor.isolation.signals.features import penultimate
from antibackdoor.isolation.verdict import agree

__all__ = ["Look", "look"]

# Share of its class from which a part is nearly all of it, and share of the part that may be taken back as a mistake.
_NEARLY_ALL, _LOST = 0.75, 0.05
# Where this share of a part is learned, and less than this of the images beside it, nothing tells which is poison.
_LEARNED, _HARDLY = 0.5, 0.2
# Share of the strongest evidence on a class from which other evidence on it adds suspects.
_FAINT = 0.1


@dataclass(frozen=True, eq=False)
class Look:
    """What one look gave.

    Attributes:
        cuts: Those of each class, by label; their rows are those of the set.
        suspects: bool (N,).
        aside: bool (N,), the suspects and what may belong to them: a little poison that stays in the training teaches
            the backdoor again, and its network would then speak for all the rest.
        seen: float32 (M, D), what the network makes of the images that were trained on; None where nobody asked.
        without: What was asked for and could not be looked at, in words.
    """

    cuts: dict[int, tuple[AnyCut, ...]]
    suspects: Tensor
    aside: Tensor
    seen: Tensor | None = None
    without: tuple[str, ...] = ()


def look(
    evidence: Evidence,
    rows: Tensor,
    total: int,
    *,
    alarm: Alarm,
    early: bool = False,
    half: int | None = None,
    earlier: Tensor | None = None,
    features: bool = True,
    channels: bool = True,
    late: bool = True,
) -> Look:
    """Cut every class by its losses and by what excites the network, and suspect a part where the alarm is raised.

    Args:
        evidence: Losses (E, M) and labels (M,) of the images that were trained on, and the network (of the whole set).
        rows: int64 (M,), which images of the set these are.
        total: N, images of the set.
        alarm: From how much evidence on a part of a class is suspected.
        early: The training is not finished.
        half: Epochs by which the slow parts are told from the rest; all by default, and then nothing was learned late.
        earlier: float (M, D), ``Look.seen`` of the look at ``half``; without, nothing is known to be new.
        features: Sharpen what is suspected by what the network makes of it, and ask of a cut by losses whether there is
            a gap between the two parts of the class.
        channels: Cut by channels as well.
        late: Cut by what was learned late, and by what is new in what the network sees, as well.

    Returns:
        The cuts of every class, the suspects and what is near them, by the set's N images.
    """
    seen, maxima = _seen(evidence, rows) if features or channels or late else (None, None)
    shown = seen if features else None
    over = half is not None and half < len(evidence.losses)
    by_losses = [dataclasses.replace(cut, early=early) for cut in cut_classes(evidence)]
    before = cut_classes(dataclasses.replace(evidence, losses=evidence.losses[:half])) if over else by_losses
    cuts: list[AnyCut] = [*_judged(by_losses, before, shown, evidence, alarm)]
    if channels and maxima is not None:
        by_channels = cut_by_channels(maxima, evidence.labels, evidence.num_classes, evidence.trained)
        cuts += [dataclasses.replace(cut, early=early) for cut in by_channels]
    if late and seen is not None and half is not None and over:
        cuts += late_cuts(before, evidence.losses, half, seen, evidence.labels, evidence.trained)
        if earlier is not None:
            cuts += new_cuts(evidence.losses, half, earlier, seen, evidence.labels, evidence.trained)
    cuts = _told(cuts, evidence, alarm)
    suspects, aside = torch.zeros(2, total, dtype=torch.bool)
    for cut in _accusing(cuts, alarm):
        alike, near = _suspected(cut, shown, evidence)
        own = rows[cut.rows]
        if agree(alike, suspects[own]):
            suspects[own] |= alike
            aside[own] |= near
    of_set: dict[int, tuple[AnyCut, ...]] = {}
    for cut in cuts:
        of_set[cut.label] = (*of_set.get(cut.label, ()), dataclasses.replace(cut, rows=rows[cut.rows]))
    without = []
    if channels and maxima is None:
        without.append("what excites its channels (the network has no convolution)")
    if late and seen is None:
        without.append("what was learned late (the network shows nothing but its answers)")
    elif late and half is not None and not over and not early:
        without.append("what was learned late (the training is too short for a look half-way)")
    return Look(of_set, suspects, aside | suspects, seen if late else None, tuple(without))


def _judged(
    cuts: Sequence[Cut], before: Sequence[Cut], seen: Tensor | None, evidence: Evidence, alarm: Alarm
) -> list[Cut]:
    """Return the cuts by losses, with the slow part accused where one is, and with a gap where that matters.

    Args:
        cuts: Of every class, by all epochs.
        before: The same by the epochs until half-way, which tell the slow parts.
        seen: float (M, D), what the network makes of the images; None where that shall not be asked.
        evidence: What was cut.
        alarm: From how much evidence on it matters.
    """

    def with_gap(cut: Cut, *, matters: bool) -> Cut:
        if seen is None or not matters or cut.slow or cut.gap is not None:
            return cut
        return _with_gap(cut, seen, evidence)

    if not alarm.silent:
        torn = [with_gap(cut, matters=cut.hidden and alarm.torn(cut)) for cut in before]
        slow = {cut.label: cut for cut in slow_cuts(torn, apart=alarm.apart)}
        cuts = [slow.get(cut.label, cut) for cut in (torn if cuts is before else cuts)]
    return [with_gap(cut, matters=alarm.doubtful(cut) or alarm.torn(cut)) for cut in cuts]


def _accusing(cuts: Sequence[AnyCut], alarm: Alarm) -> list[AnyCut]:
    """Return the cuts that raise the alarm, in their order, without those that are faint beside another of a class."""
    raised = [cut for cut in cuts if alarm.raised(cut)]
    most: dict[int, float] = {}
    for cut in raised:
        most[cut.label] = max(most.get(cut.label, 0.0), cut.strength)
    return [cut for cut in raised if cut.slow or cut.strength >= _FAINT * most[cut.label]]


def _told(cuts: Sequence[AnyCut], evidence: Evidence, alarm: Alarm) -> list[AnyCut]:
    """Return the cuts, with those marked of which it cannot be told which part is poison.

    Where the network has learned one part of a class and hardly any of the rest, the part may be the poison, or it may
    be what the class is, and the rest poison with a wrong label that is not learned yet. Votes tell the former
    (``Cut.first``). What was hard and was learned late is not asked.
    """
    known = learned(evidence.losses)
    certain = {cut.label for cut in cuts if isinstance(cut, Cut) and cut.first}

    def told(cut: AnyCut) -> AnyCut:
        if isinstance(cut, LateCut) or not alarm.raised(cut) or cut.slow or cut.label in certain:
            return cut
        trained = evidence.trained[cut.rows]
        part, beside = (cut.rows[side & trained] for side in (cut.suspicion > 0.5, cut.suspicion <= 0.5))
        if min(len(part), len(beside)) < SMALLEST_PART:
            return cut
        shares = [float(known[rows].double().mean()) for rows in (part, beside)]
        return dataclasses.replace(cut, untold=shares[0] >= _LEARNED and shares[1] < _HARDLY)

    return [told(cut) for cut in cuts]


def _suspected(cut: AnyCut, seen: Tensor | None, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Return which images of a class, bool (n,), are suspected for a cut, and which are to be left out with them."""
    start = start_of(cut, evidence.losses[:, cut.rows]) if isinstance(cut, Cut) else cut.suspicion > 0.5
    if seen is None:
        return start, start
    alike, near = sharpened(seen[cut.rows], start)
    return (alike | start, torch.ones_like(start)) if _unsettled(start, alike) else (alike, near)


def _unsettled(start: Tensor, alike: Tensor) -> bool:
    """Say whether a part that is most of its class was not confirmed: bool (n,) each.

    The rest of such a class is small, and poison that was missed is most of it, so that nothing can be told by it. The
    whole class is set aside then.
    """
    return float(start.double().mean()) >= _NEARLY_ALL and int((start & ~alike).sum()) > _LOST * int(start.sum())


def _with_gap(cut: Cut, seen: Tensor, evidence: Evidence) -> Cut:
    """Return a cut with the gap between its parts.

    Where a class falls apart and hardly any images are beside the part that is accused, there is nothing to see a gap
    to, and the losses decide.
    """
    beside = int((evidence.trained[cut.rows] & (cut.suspicion <= 0.5)).sum())
    if beside < SMALLEST_PART and cut.gain >= APART:
        return cut
    gap = gap_between(seen, evidence.labels, cut.label, cut.suspicion > 0.5, evidence.trained)
    return cut if gap is None else dataclasses.replace(cut, gap=gap.width)


def _measured(evidence: Evidence, rows: Tensor, of: Callable[[Network], Measure]) -> Tensor | None:
    """Return what a measure gives for some images of the set, (len(rows), D); None where the network has no such."""
    if evidence.network is None:
        return None
    try:
        measure = of(evidence.network)
    except ConfigError:
        return None
    return evidence.network.measure([measure], rows)[0]


def _seen(evidence: Evidence, rows: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return what the network makes of some images, its channels' maxima and its penultimate features; the former."""
    maxima, features = (_measured(evidence, rows, of) for of in (channel_maxima, penultimate))
    parts = [part for part in (maxima, features) if part is not None]
    return (torch.cat(parts, 1) if parts else None), maxima
