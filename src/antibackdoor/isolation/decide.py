"""From scores to flagged images; scoring and deciding are two steps."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError

__all__ = ["Scope", "flag_share", "most_suspect_first", "rank_within_classes"]

Scope = Literal["class", "set"]


def most_suspect_first(scores: Tensor) -> Tensor:
    """Return the rows from the highest score to the lowest.

    Ties are broken at random, always in the same way: in a set that is sorted by class, taking the first of many equal
    scores would take them all from one class.

    Args:
        scores: float (N,), higher is more suspect.

    Returns:
        int64 (N,).
    """
    shuffled = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0))
    return shuffled[scores[shuffled].argsort(descending=True, stable=True)]


def rank_within_classes(scores: Tensor, labels: Tensor) -> Tensor:
    """Replace each score by its rank among the images of the same label.

    Args:
        scores: float (N,), higher is more suspect.
        labels: int64 (N,).

    Returns:
        float32 (N,) in (0, 1]: the share of the class that is at most as suspect; see :func:`most_suspect_first` for
        ties.
    """
    ranks = torch.empty(len(scores), dtype=torch.float32)
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        order = most_suspect_first(scores[rows]).flip(0)
        ranks[rows[order]] = torch.arange(1, len(rows) + 1, dtype=torch.float32) / len(rows)
    return ranks


def flag_share(scores: Tensor, share: float) -> Tensor:
    """Flag a fixed share of the images, the most suspect ones.

    Args:
        scores: float (N,), higher is more suspect.
        share: 0..1; ``share * N`` is rounded up.

    Returns:
        bool (N,); see :func:`most_suspect_first` for ties.

    Raises:
        ConfigError: The share is outside 0..1.

    Source:
        ABL isolates 1 %, whatever the set holds. A fixed share is no finding: it flags as much in a clean set.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share: must be in 0..1, got {share}")
    flagged = torch.zeros(len(scores), dtype=torch.bool)
    count = math.ceil(share * len(scores) - 1e-9)
    flagged[most_suspect_first(scores)[:count]] = True
    return flagged
