"""Triggers on float (N, C, H, W) in [0, 1]; each returns a new tensor of the same shape and range."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["blend", "grid_pattern", "patch_at", "sinusoid", "sinusoid_wave", "smooth_noise"]


def patch_at(images: Tensor, pattern: Tensor, top: int, left: int, *, alpha: float = 1.0) -> Tensor:
    """Put a patch on every image: ``(1 - alpha) * x + alpha * pattern`` inside it.

    Args:
        images: float (N, C, H, W) in [0, 1].
        pattern: float (C or 1, h, w) in [0, 1].
        top: First row of the patch, 0..H-h.
        left: First column, 0..W-w.
        alpha: Opacity, 0..1.
    """
    height, width = pattern.shape[-2:]
    stamped = images.clone()
    window = stamped[:, :, top : top + height, left : left + width]
    window.mul_(1 - alpha).add_(alpha * pattern.to(images))
    return stamped


def grid_pattern(size: int) -> Tensor:
    """Return the BadNets grid as float (1, size, size): the 3x3 chequered corner, enlarged without smoothing.

    Source:
        The 3x3 pattern of ABL's released data (rows 001, 010, 101), itself after Gu et al., BadNets, 2017.
    """
    base = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    rows = (torch.arange(size) * 3).div(size, rounding_mode="floor")
    return base[rows][:, rows][None]


def blend(images: Tensor, pattern: Tensor, alpha: float) -> Tensor:
    """Mix a whole-image pattern in: ``(1 - alpha) * x + alpha * pattern``.

    Args:
        images: float (N, C, H, W) in [0, 1].
        pattern: float (C or 1, H, W) in [0, 1].
        alpha: Share of the pattern, 0..1.

    Source:
        Chen et al., Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017.
    """
    return images * (1 - alpha) + alpha * pattern.to(images)


def smooth_noise(shape: tuple[int, int, int], generator: torch.Generator, *, cells: int = 8) -> Tensor:
    """Return low-pass noise as float (C, H, W), stretched to [0, 1]: uniform cells, enlarged bicubically.

    Args:
        shape: C, H, W.
        generator: Source of the cells.
        cells: Cells along each side; as many as pixels gives white noise. One cell of one channel is a flat grey, which
            nothing can stretch.
    """
    channels, height, width = shape
    coarse = torch.rand((1, channels, min(cells, height), min(cells, width)), generator=generator)
    if coarse.numel() == 1:
        return coarse[0].expand(shape).clone()
    noise = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0]
    low, high = noise.amin(), noise.amax()
    return (noise - low) / (high - low)


def sinusoid_wave(width: int, frequency: float) -> Tensor:
    """Return ``sin(2 pi j f / W)`` of the columns j = 0..W-1, as float (W,)."""
    return torch.sin(2 * math.pi * frequency * torch.arange(width) / width)


def sinusoid(images: Tensor, delta: float, frequency: float) -> Tensor:
    """Add a horizontal sinusoid to all rows and channels, then clip: ``x + delta * sin(2 pi j f / W)``.

    Args:
        images: float (N, C, H, W) in [0, 1].
        delta: Amplitude on the scale of the pixels, such as 20/255.
        frequency: Cycles over the width.

    Source:
        Barni et al., A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, ICIP 2019.
        The released ABL data holds a wrapped uint8 copy of the wave that is blended in; this is the paper's sum.
    """
    return (images + delta * sinusoid_wave(images.shape[3], frequency).to(images)).clamp(0, 1)
