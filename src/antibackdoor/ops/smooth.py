"""Smooth patterns made of the lowest frequencies of the cosine transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["cosine_basis", "smooth_pattern"]


def cosine_basis(size: int, count: int) -> Tensor:
    """Return the lowest waves of the discrete cosine transform (DCT-II): ``cos(pi (i + 1/2) k / size)``.

    Args:
        size: Points i = 0..size-1 along one side.
        count: Waves k = 0..count-1; the first is constant.

    Returns:
        float (count, size), in -1..1.
    """
    points = torch.arange(size, dtype=torch.float32) + 0.5
    waves = torch.arange(count, dtype=torch.float32)
    return torch.cos(math.pi / size * waves[:, None] * points)


def smooth_pattern(coefficients: Tensor, height: int, width: int) -> Tensor:
    """Return the sum of the lowest waves, stretched to [0, 1] over all channels together.

    Args:
        coefficients: float (C, k, k), of vertical and horizontal waves; that of the constant wave, (0, 0), does not
            count. Gradients flow through.
        height: H.
        width: W.

    Returns:
        float (C, H, W) in [0, 1].
    """
    count = coefficients.shape[-1]
    rows, columns = cosine_basis(height, count).to(coefficients), cosine_basis(width, count).to(coefficients)
    varying = torch.ones(count, count).to(coefficients)
    varying[0, 0] = 0
    pattern = rows.T @ (coefficients * varying) @ columns
    low, high = pattern.amin(), pattern.amax()
    return (pattern - low) / (high - low).clamp_min(1e-12)
