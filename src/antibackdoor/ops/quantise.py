"""Fewer colours: rounding to evenly spaced levels, with or without error diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dither", "quantise"]

# Numbers in one skewed buffer of ``dither``: 64 MB of float32.
_PART = 1 << 24


def quantise(images: Tensor, levels: int) -> Tensor:
    """Round every channel to evenly spaced levels: ``round(x (L - 1)) / (L - 1)``.

    Args:
        images: float (N, C, H, W) in [0, 1].
        levels: L, at least 2.

    Source:
        Wang et al., BppAttack, CVPR 2022, equation 2.
    """
    return images.mul(levels - 1).round().div(levels - 1)


def dither(images: Tensor, levels: int) -> Tensor:
    """Round to levels and pass what is lost on to the neighbours still to come (Floyd and Steinberg).

    A pixel's error goes to the right (7/16), down left (3/16), down (5/16) and down right (1/16). Pixel (i, j) is
    computed at step ``j + 2 i``, when all it waits for is done, so W + 2 H steps over all rows and images at once take
    the place of H W; every sum is formed in the order of a scan, so the result is that of a scan bit for bit.

    Args:
        images: float (N, C, H, W) in [0, 1].
        levels: L, at least 2.

    Source:
        Floyd and Steinberg, An Adaptive Algorithm for Spatial Greyscale, 1976, as BppAttack uses it; levels are clipped
        to the range here, which its released code leaves to the cast to uint8.
    """
    count, channels, height, width = images.shape
    steps = width + 2 * (height - 1)
    images_at_once = max(1, _PART // ((steps + 3) * height * channels))
    return torch.cat([_dither(part, levels) for part in images.split(images_at_once)]) if count else images.clone()


def _dither(images: Tensor, levels: int) -> Tensor:
    count, channels, height, width = images.shape
    steps = width + 2 * (height - 1)
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)[None]
    times = columns + 2 * rows
    # Three steps more than needed, for errors that the last pixels pass on to no one.
    skewed = images.new_zeros((steps + 3, height, count * channels))
    skewed[times, rows] = images.mul(levels - 1).permute(2, 3, 0, 1).reshape(height, width, count * channels)
    inside = images.new_zeros((steps, height, 1))
    inside[times, rows] = 1
    for step in range(steps):
        here = skewed[step]
        rounded = here.round().clamp_(0, levels - 1)
        error = (here - rounded).mul_(inside[step])
        skewed[step] = rounded
        skewed[step + 3, 1:] += error[:-1] * (1 / 16)
        skewed[step + 2, 1:] += error[:-1] * (5 / 16)
        skewed[step + 1, 1:] += error[:-1] * (3 / 16)
        skewed[step + 1] += error * (7 / 16)
    flat = skewed[times, rows].div_(levels - 1)
    return flat.reshape(height, width, count, channels).permute(2, 3, 0, 1).contiguous()
