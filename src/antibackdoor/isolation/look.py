"""One look at a training: every class cut in two in two ways, and who is suspected for it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.channels import ChannelCut, channel_maxima, cut_by_channels
from antibackdoor.isolation.cuts import APART, cut_classes, sharpened, slow_cuts
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.signals.features import penultimate
from antibackdoor.isolation.verdict import AnyCut

__all__ = ["Look", "look"]

# Responsibility from which the losses alone make a suspect, whatever the features say.
_SURE = 0.9


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
        sensitivity: Divides the gain from which a slow part is suspected, as it did ``alarm``.
        features: Sharpen what the losses suspect by what the network sees in it.
        channels: Cut by channels as well.
    """
    by_losses = cut_classes(evidence)
    if math.isfinite(alarm):
        slow = {cut.label: cut for cut in slow_cuts(by_losses, apart=APART / sensitivity)}
        by_losses = [slow.get(cut.label, cut) for cut in by_losses]
    by_channels = _by_channels(evidence, rows) if channels else []
    suspects, aside = torch.zeros(2, total, dtype=torch.bool)
    for cut in by_losses:
        if cut.slow or cut.strength >= alarm:
            members = cut.suspicion > 0.5
            alike = _sharpened(evidence, rows[cut.rows], members) if features else members
            suspects[rows[cut.rows]] = alike | (cut.suspicion > _SURE)
            aside[rows[cut.rows]] = alike | members
    for apart in by_channels:
        if apart.strength >= alarm:
            suspects[rows[apart.rows[apart.suspicion > 0.5]]] = True
    cuts: dict[int, tuple[AnyCut, ...]] = {}
    found: list[AnyCut] = [*by_losses, *by_channels]
    for one in found:
        cuts[one.label] = (*cuts.get(one.label, ()), dataclasses.replace(one, rows=rows[one.rows]))
    return Look(cuts, suspects, aside | suspects)


def _by_channels(evidence: Evidence, rows: Tensor) -> list[ChannelCut]:
    """Cut by channels where there is a network that has some."""
    network = evidence.network
    if network is None:
        return []
    try:
        measure = channel_maxima(network)
    except ConfigError:
        return []
    maxima = network.measure([measure], rows)[0]
    return cut_by_channels(maxima, evidence.labels, evidence.num_classes, evidence.trained)


def _sharpened(evidence: Evidence, rows: Tensor, members: Tensor) -> Tensor:
    """Return which images of a class look to the network like its suspects, where it has features to tell by."""
    network = evidence.network
    if network is None:
        return members
    try:
        measure = penultimate(network)
    except ConfigError:
        return members
    return sharpened(network.measure([measure], rows)[0], members)
