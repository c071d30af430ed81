"""What signals share that ask whether a prediction persists when the image or the network is changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["persistence", "where_learned"]


def persistence(original: Tensor, changed: Iterable[Tensor]) -> Tensor:
    """Return how far the original prediction persists over several changes.

    Args:
        original: float (B, K), the logits of the image as it is.
        changed: The logits after each change, float (B, K) each; at least one.

    Returns:
        float32 (B, 3): the original prediction, the share of changes that leave it, and its mean probability.
    """
    predicted = original.argmax(1)
    count = 0
    agrees, probability = torch.zeros_like(predicted, dtype=torch.float32), torch.zeros_like(original[:, 0])
    for logits in changed:
        count += 1
        agrees += logits.argmax(1) == predicted
        probability += logits.softmax(1).gather(1, predicted[:, None]).squeeze(1)
    return torch.stack([predicted.float(), agrees / count, probability / count], 1)


def where_learned(scores: Tensor, predicted: Tensor, labels: Tensor, lowest: float) -> Tensor:
    """Return the scores of images that are predicted as labelled, and the lowest for all others.

    An image whose label the network has not learned cannot carry a backdoor into it, and that its wrong prediction
    persists is no sign of one.

    Args:
        scores: float (N,).
        predicted: (N,), the network's predictions.
        labels: int64 (N,), as observed.
        lowest: A score that none of the others is below.
    """
    return torch.where(predicted.long() == labels, scores, torch.full_like(scores, lowest))
