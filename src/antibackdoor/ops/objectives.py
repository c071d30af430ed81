"""Per-sample losses and the elementwise maps that anti-backdoor learning puts on them.

The maps act on every element they are given, so the order of reduction is visible where they are used:
``lga(ce(z, y), g).mean()`` is the rule of the paper's equation, ``lga(ce(z, y).mean(), g)`` that of the released code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["capped", "ce", "complement", "flood", "lga"]


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample.

    Args:
        logits: float (N, K).
        labels: int64 (N,), each in 0..K-1.

    Returns:
        float32 (N,), in nats.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def lga(loss: Tensor, gamma: float) -> Tensor:
    """Local gradient ascent: ``sign(loss - gamma) * loss``, of each element.

    Args:
        loss: float, any shape.
        gamma: The level, in nats, at which losses are held.

    Returns:
        float, the shape of ``loss``. Its gradient is that of ``loss`` above gamma, its negative below.

    Source:
        Li et al., Anti-Backdoor Learning, NeurIPS 2021, L_LGA (there inside the expectation).
    """
    return torch.sign(loss.detach() - gamma) * loss


def flood(loss: Tensor, level: float) -> Tensor:
    """Flooding: ``|loss - level| + level``, of each element; the gradient is that of :func:`lga` at gamma = level.

    Args:
        loss: float, any shape.
        level: The flood level, in nats.

    Returns:
        float, the shape of ``loss``.

    Source:
        Ishida et al., Do We Need Zero Training Loss After Achieving Zero Training Error?, ICML 2020 (there on a
        batch mean); ABL's released code runs it so in its isolation stage.
    """
    return (loss - level).abs() + level


def capped(loss: Tensor, cap: float) -> Tensor:
    """Return ``min(loss, cap)`` of each element: ascent on it stops, sample by sample, once the loss reaches cap.

    Args:
        loss: float, any shape.
        cap: In nats; log K is the loss of a guess among K classes.

    Returns:
        float, the shape of ``loss``; the gradient is zero where ``loss >= cap``.
    """
    return loss.clamp(max=cap)


def complement(logits: Tensor, labels: Tensor) -> Tensor:
    """Complementary cross-entropy ``-log(1 - p)`` of the label's probability p: minimising it forgets the label.

    Args:
        logits: float (N, K), K >= 2.
        labels: int64 (N,), the labels to forget, each in 0..K-1.

    Returns:
        float32 (N,), >= 0, in nats. Its gradient in the label's logit is ``p``: full where the network is certain,
        where that of ``-ce`` is nothing, and fading as the label is forgotten, where that of ``-ce`` grows. It is taken
        from the logits, since the cross-entropy of a certain network rounds to zero.
    """
    logits = logits.float()
    own = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    return logits.logsumexp(1) - logits.masked_fill(own, -torch.inf).logsumexp(1)
