"""One look at a training: every class cut in two in two ways, and who is suspected for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.channels import ChannelCut, channel_maxima, cut_by_channels
from antibackdoor.isolation.cuts import APART, cut_classes, learned, sharpened, slow_cuts
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.features import penultimate
from antibackdoor.isolation.verdict import AnyCut

__all__ = ["Look", "look"]


@dataclass(frozen=True, eq=False)
class Look:
    """What one look gave.

    Attributes:
        cuts: Those of each class, by label; their rows are those of the set.
        suspects: bool (N,).
        aside: bool (N,), the suspects and what may belong to them: a little poison that stays in the training teaches
            the backdoor again, and its network would then speak for all the rest.
    """

    cuts: dict[int, tuple[AnyCut, ...]]
    suspects: Tensor
    aside: Tensor


def look(
    evidence: Evidence,
    rows: Tensor,
    total: int,
    *,
    alarm: float,
    half: int | None = None,
    sensitivity: float = 1.0,
    features: bool = True,
    channels: bool = True,
) -> Look:
    """Cut every class by its losses and by what excites the network, and suspect a part where the alarm is raised.

    Args:
        evidence: Losses (E, M) and labels (M,) of the images that were trained on, and the network (of the whole set).
        rows: int64 (M,), which images of the set these are.
        total: N, images of the set.
        alarm: Strength from which a part of a class is suspected; infinity only cuts.
        half: Epochs by which the slow parts are told from the rest; all by default.
        sensitivity: Divides the gain from which a slow part is suspected, as it did ``alarm``.
        features: Sharpen what the losses suspect by what the network sees in it.
        channels: Cut by channels as well.
    """
    by_losses = cut_classes(evidence)
    if math.isfinite(alarm):
        before = dataclasses.replace(evidence, losses=evidence.losses[:half])
        slow = {cut.label: cut for cut in slow_cuts(cut_classes(before), apart=APART / sensitivity)}
        by_losses = [slow.get(cut.label, cut) for cut in by_losses]
    maxima = _measured(evidence, rows, channel_maxima) if features or channels else None
    by_channels: list[ChannelCut] = []
    if channels and maxima is not None:
        by_channels = cut_by_channels(maxima, evidence.labels, evidence.num_classes, evidence.trained)
    suspects, aside = torch.zeros(2, total, dtype=torch.bool)
    for cut in by_losses:
        if cut.slow or cut.strength >= alarm:
            alike = near = learned(cut, evidence.losses[:, cut.rows])
            if features:
                seen = _seen(evidence, rows, cut.rows, maxima)
                alike, near = sharpened(seen, alike) if seen is not None else (alike, near)
            suspects[rows[cut.rows]] = alike
            aside[rows[cut.rows]] = near if cut.slow else near | (cut.suspicion > 0.5)
    for apart in by_channels:
        if apart.strength >= alarm:
            suspects[rows[apart.rows[apart.suspicion > 0.5]]] = True
    cuts: dict[int, tuple[AnyCut, ...]] = {}
    found: list[AnyCut] = [*by_losses, *by_channels]
    for one in found:
        cuts[one.label] = (*cuts.get(one.label, ()), dataclasses.replace(one, rows=rows[one.rows]))
    return Look(cuts, suspects, aside | suspects)


def _measured(evidence: Evidence, rows: Tensor, of: Callable[[Network], Measure]) -> Tensor | None:
    """Return what a measure gives for some images of the set, (len(rows), D); None where the network has no such."""
    if evidence.network is None:
        return None
    try:
        measure = of(evidence.network)
    except ConfigError:
        return None
    return evidence.network.measure([measure], rows)[0]


def _seen(evidence: Evidence, rows: Tensor, own: Tensor, maxima: Tensor | None) -> Tensor | None:
    """Return what the network makes of the images of a class: its channels' maxima and its penultimate features."""
    penultimates = _measured(evidence, rows[own], penultimate)
    parts = [part for part in (None if maxima is None else maxima[own], penultimates) if part is not None]
    return torch.cat(parts, 1) if parts else None
