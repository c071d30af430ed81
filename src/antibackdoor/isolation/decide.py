"""From scores to flagged images; scoring and deciding are two steps."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError

__all__ = ["Scope", "flag_share", "rank_within_classes"]

Scope = Literal["class", "set"]


def rank_within_classes(scores: Tensor, labels: Tensor) -> Tensor:
    """Replace each score by its rank among the images of the same label.

    Args:
        scores: float (N,), higher is more suspect.
        labels: int64 (N,).

    Returns:
        float32 (N,) in (0, 1]: the share of the class that is at most as suspect; ties are broken by position.
    """
    ranks = torch.empty(len(scores), dtype=torch.float32)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        order = scores[rows].argsort(stable=True)
        ranks[rows[order]] = torch.arange(1, len(rows) + 1, dtype=torch.float32) / len(rows)
    return ranks


def flag_share(scores: Tensor, share: float) -> Tensor:
    """Flag a fixed share of the images, the most suspect ones.

    Args:
        scores: float (N,), higher is more suspect.
        share: 0..1; ``share * N`` is rounded up.

    Returns:
        bool (N,); ties are broken by position.

    Raises:
        ConfigError: The share is outside 0..1.

    Source:
        ABL isolates 1 %, whatever the set holds. A fixed share is no finding: it flags as much in a clean set.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share: must be in 0..1, got {share}")
    flagged = torch.zeros(len(scores), dtype=torch.bool)
    count = math.ceil(share * len(scores) - 1e-9)
    flagged[scores.argsort(descending=True, stable=True)[:count]] = True
    return flagged
