"""Gradients of the given label's logit with respect to activations, and what they say of a class and its images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.isolation.network import Network
from antibackdoor.training import evaluating

__all__ = ["activation_gradients", "cosines", "dispersion", "peeled", "settled_at"]

_NOTHING, _TINY = 1e-30, 1e-12
_BINS = 99


def activation_gradients(network: Network, layers: Sequence[nn.Module]) -> list[NDArray[np.float32]]:
    """Return, of every layer, the gradient of each image's logit of its label with respect to the layer's output.

    Args:
        network: The network and the images with their labels; one pass forward and one back are made.
        layers: Modules that run once, each giving (B, C, h, w).

    Returns:
        One float32 (N, C) a layer: gradients averaged over places.
    """
    kept: list[list[NDArray[np.float32]]] = [[] for _ in layers]
    with evaluating(network.model), torch.enable_grad():
        for images, rows in network.batches():
            outputs: dict[int, Tensor] = {}
            hooks = [layer.register_forward_hook(_keeping(outputs, place)) for place, layer in enumerate(layers)]
            try:
                logits = network.forward(images.requires_grad_(True))
            finally:
                for hook in hooks:
                    hook.remove()
            labels = network.data.labels[rows].to(logits.device)
            own = logits.gather(1, labels[:, None]).sum()  # images do not meet in evaluation mode
            found = torch.autograd.grad(own, [outputs[place] for place in range(len(layers))])
            for place, gradient in enumerate(found):
                kept[place].append(gradient.float().mean((2, 3)).cpu().numpy())
    return [np.concatenate(parts) for parts in kept]


def cosines(gradients: NDArray[np.float64], direction: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of every row of (n, C) with a direction (C,), float64 (n,); 0 where either is nothing."""
    lengths = np.linalg.norm(gradients, axis=1) * np.linalg.norm(direction)
    return np.asarray((gradients @ direction) / np.maximum(lengths, _NOTHING) * (lengths > _NOTHING))


def dispersion(gradients: NDArray[np.float64], reference: NDArray[np.float64]) -> tuple[float, int]:
    """Return how far the directions of a class lie apart, and the row that is least like the reference.

    Args:
        gradients: (n, C) of one class, n at least 2.
        reference: (C,), of images that are known to be clean.

    Returns:
        The root mean square, over the other rows, of the difference between the cosine with the reference and that with
        the least like row (the sum divided by n, as released); and that row.
    """
    near = cosines(gradients, reference)
    least = int(near.argmin())
    apart = near - cosines(gradients, gradients[least])
    return float(math.sqrt(float((np.delete(apart, least) ** 2).sum()) / len(gradients))), least


def peeled(
    gradients: NDArray[np.float64], reference: NDArray[np.float64], first: int, step: float
) -> tuple[NDArray[np.int64], list[float]]:
    """Take a class apart, from the image least like clean ones on, always those that are most like what is taken.

    In each round the images left are scored by their distance to the mean of what is taken over that plus the distance
    to the reference; those in the lowest ``step`` of the range of scores are taken.

    Args:
        gradients: (n, C) of one class.
        reference: (C,), of images that are known to be clean.
        first: The row to begin with.
        step: Part of the range, above 0 and below 1.

    Returns:
        The round in which each row was taken, int64 (n,), 0 for the first; and the Jensen-Shannon distance between the
        scores that were left before each of the other rounds and after it.
    """
    taken_in = np.full(len(gradients), -1, dtype=np.int64)
    taken_in[first] = 0
    changes: list[float] = []
    away = 1 - cosines(gradients, reference)
    before = _shares(gradients, away, taken_in)[taken_in < 0]
    while (taken_in < 0).any():
        left = taken_in < 0
        shares = _shares(gradients, away, taken_in)
        low, high = float(shares[left].min()), float(shares[left].max())
        taken = left & (shares <= low + step * (high - low))
        taken_in[taken] = len(changes) + 1
        rest = shares[left & ~taken]
        changes.append(_jensen_shannon(before, rest))
        before = rest
    return taken_in, changes


def settled_at(changes: Sequence[float], window: int) -> int:
    """Return how many rounds came before the ``window`` in a row in which scores change least and most evenly.

    Args:
        changes: Of every round, as :func:`peeled` returns them.
        window: Rounds; with fewer than that in all, half of them, at least 1.

    Returns:
        How many rounds took poison, that of the first image, which has no change, included: at least 1.
    """
    if not changes:
        return 1
    width = window if len(changes) >= window else max(1, len(changes) // 2)
    parts = [np.array(changes[start : start + width]) for start in range(len(changes) - width + 1)]
    return 1 + int(np.argmin([part.mean() + 5 * part.std() for part in parts]))


def _keeping(outputs: dict[int, Tensor], place: int) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs[place] = output
        return output.clone()  # what follows may work in place

    return hook


def _shares(
    gradients: NDArray[np.float64], away: NDArray[np.float64], taken_in: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the distance to what is taken, over that plus the distance to the reference; 0.5 where both are 0."""
    apart = 1 - cosines(gradients, gradients[taken_in >= 0].mean(0))
    total = apart + away
    return np.where(total > _TINY, np.clip(apart / np.maximum(total, _TINY), 0, 1), 0.5)


def _jensen_shannon(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return the distance of two sets of numbers in 0..1 by their histograms, 0..0.83; 1 where one is empty."""
    if not len(one) or not len(other):
        return 1.0
    from scipy.spatial.distance import jensenshannon

    edges = np.linspace(0, 1, _BINS + 1)
    return float(jensenshannon(*(np.histogram(part, bins=edges)[0] for part in (one, other))))
