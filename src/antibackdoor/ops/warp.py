"""Elastic warping of float (N, C, H, W) in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["control_field", "identity_grid", "warp"]

# Shifts are counted in half pixels of a picture of this size; larger pictures are bent as much relative to their size.
_REFERENCE = 32


def identity_grid(height: int, width: int) -> Tensor:
    """Return the sampling grid that changes nothing: float (H, W, 2), (x, y) in [-1, 1], corners at the corners."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack((columns, rows), dim=2)


def control_field(cells: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return a smooth field of shifts: uniform control points of mean size 1, enlarged bicubically.

    Args:
        cells: Control points along each side, at least 2.
        height: H.
        width: W.
        generator: Source of the points.

    Returns:
        float (H, W, 2), shifts along x and y without unit; about 1 in size.

    Source:
        Nguyen and Tran, WaNet, ICLR 2021, section 3.2: ``P = rand[-1, 1](k, k, 2)``, ``P / mean|P|``, upsampled.
    """
    points = torch.rand((1, 2, cells, cells), generator=generator) * 2 - 1
    points = points / points.abs().mean()
    field = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)
    return field[0].permute(1, 2, 0)


def warp(images: Tensor, shifts: Tensor) -> Tensor:
    """Sample every image at shifted places, bilinearly: ``x'(p) = x(clip(p + shift))``.

    Args:
        images: float (N, C, H, W) in [0, 1].
        shifts: float (H, W, 2) or (N, H, W, 2), along x and y. A shift of 1 is half a pixel up to 32 pixels along
            that side, and 1/64 of the side above.

    Returns:
        float (N, C, H, W) in [0, 1].

    Source:
        WaNet, equation 3, which divides by H at every size. Its shift is then half a pixel in a picture of 224 too,
        where hardly anything is left of it; hence the constant share of the side above 32 pixels.
    """
    count, _, height, width = images.shape
    scale = torch.tensor([1 / min(width, _REFERENCE), 1 / min(height, _REFERENCE)])
    grid = identity_grid(height, width).to(images) + shifts.to(images) * scale.to(images)
    grid = grid.clamp(-1, 1).expand(count, height, width, 2)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True).clamp_(0, 1)
