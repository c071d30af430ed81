"""Patches drawn here, as whole-image overlays: a weight for every pixel and the colour to mix in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Corner", "Overlay", "colour_cells", "disc", "enlarge", "lay", "overlay_of", "scaled"]

Corner = Literal["bottom-left", "bottom-right", "top-left", "top-right"]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Something to lay over images: ``(1 - weight) * x + weight * ink``.

    Attributes:
        weight: float (1, H, W) in [0, 1], or (N, 1, H, W) where it differs from image to image.
        ink: float (C, H, W) in [0, 1], or (N, C, H, W).
    """

    weight: Tensor
    ink: Tensor


def lay(images: Tensor, overlay: Overlay) -> Tensor:
    """Return float (N, C, H, W) in [0, 1] with an overlay on every image."""
    weight = overlay.weight.to(images)
    return images * (1 - weight) + weight * overlay.ink.to(images)


def overlay_of(
    pixels: Tensor,
    mask: Tensor,
    shape: tuple[int, int, int],
    corners: tuple[Corner, ...],
    margin: int,
) -> Overlay:
    """Put one patch into corners of an empty picture.

    Args:
        pixels: float (C or 1, h, w) in [0, 1].
        mask: float (1, h, w) in [0, 1], its opacity.
        shape: C, H, W of the images; h and w with the margin must fit.
        corners: Where it goes.
        margin: Pixels between the patch and the two edges.
    """
    channels, height, width = shape
    side_y, side_x = pixels.shape[-2:]
    weight, ink = torch.zeros(1, height, width), torch.zeros(channels, height, width)
    for corner in corners:
        top = margin if corner.startswith("top") else height - side_y - margin
        left = margin if corner.endswith("left") else width - side_x - margin
        weight[:, top : top + side_y, left : left + side_x] = mask
        ink[:, top : top + side_y, left : left + side_x] = pixels
    return Overlay(weight, ink)


def scaled(pixels: float, shape: tuple[int, int, int]) -> int:
    """Return a length given for a picture of 32 pixels, in pixels of one whose shorter side is another."""
    _, height, width = shape
    return round(pixels * min(height, width) / 32)


def enlarge(pattern: Tensor, side: int) -> Tensor:
    """Return a square pattern (C, s, s) as (C, side, side), without smoothing."""
    cells = pattern.shape[-1]
    rows = (torch.arange(side) * cells).div(side, rounding_mode="floor")
    return pattern[:, rows][:, :, rows]


def colour_cells(channels: int, cells: int, generator: torch.Generator) -> Tensor:
    """Return square cells of full colours, every channel black or bright: float (C, cells, cells), each 0 or 1."""
    return torch.randint(2, (channels, cells, cells), generator=generator).float()


def disc(side: int) -> Tensor:
    """Return the mask of a disc that fills a square: float (1, side, side), each 0 or 1."""
    offsets = torch.arange(side) - (side - 1) / 2
    inside = offsets[:, None] ** 2 + offsets[None] ** 2 <= (side / 2) ** 2
    return inside.float()[None]
