"""Making up for the images that a class lost: the network is told how frequent the class is."""

from __future__ import annotations

import torch
from torch import Tensor

from antibackdoor.isolation import Network, head_of

__all__ = ["lost", "make_up"]

# How many times as frequent as it was trained a class is taken to be: less is chance, more is not known.
_LEAST, _MOST = 1.1, 10.0


def lost(labels: Tensor, shown: Tensor, left_out: Tensor, num_classes: int) -> Tensor:
    """Return by what factor classes are more frequent than they were trained: float64 (K,), at least 1.

    A class is taken to be as large as it was with what was left out, or as the smallest class that is whole, whichever
    is less. So poison that wore a wrong label leaves nothing to make up for where classes are of like sizes; where its
    target is the rarest class, it counts as images that the class lost. The network cannot tell: of a class that lost
    most of its images it rejects right labels too.

    Args:
        labels: int64 (N,), as observed.
        shown: bool (N,), what the network was trained on.
        left_out: bool (N,), what it was not shown, as poison or for looking like it.
        num_classes: K.
    """
    kept, dropped = (torch.bincount(labels[rows], minlength=num_classes).double() for rows in (shown, left_out))
    others = kept[(dropped == 0) & (kept > 0)]
    if not len(others):
        return torch.ones(num_classes, dtype=torch.float64)
    size = torch.minimum(kept + dropped, others.min())
    factors = size / kept.clamp_min(1)
    return torch.where((dropped > 0) & (kept > 0) & (factors >= _LEAST), factors, 1.0).clamp_max(_MOST)


@torch.no_grad()
def make_up(network: Network, factors: Tensor) -> bool:
    """Add the logarithm of these factors, float (K,), to the logits, in the network itself.

    Args:
        network: Changed in place.
        factors: By which each class is more frequent than it was trained.

    Returns:
        Whether it was done: the last layer that runs must be ``nn.Linear`` with a bias for every class.

    Source:
        Menon et al., Long-tail learning via logit adjustment, ICLR 2021, post-hoc (tau = 1), there for every class by
        its frequency.
    """
    head = head_of(network)
    if head is None or head.bias is None or head.bias.shape != factors.shape:
        return False
    head.bias.add_(factors.log().to(head.bias))
    return True
