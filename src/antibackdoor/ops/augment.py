"""Batched augmentation on the batch's own device; every random draw comes from a generator argument.

All functions take and return float or uint8 (N, C, H, W) and do not change their input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

__all__ = ["AUGMENTATIONS", "AugmentName", "augment", "crop", "cutout", "cutout_2px", "flip"]

AugmentName = Literal["crop", "cutout", "cutout-2px", "flip"]


def _integers(high: int, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    # Drawn where the generator is: one on the batch's own device saves a copy that would wait for it.
    return torch.randint(high, (count,), generator=generator, device=generator.device).to(device)


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side (4 pixels of 32) in both directions, filling with black.

    Args:
        images: (N, C, H, W).
        generator: Source of the shifts.

    Returns:
        (N, C, H, W).
    """
    count, _, height, width = images.shape
    pad_y, pad_x = max(1, height // 8), max(1, width // 8)
    padded = torch.nn.functional.pad(images, (pad_x, pad_x, pad_y, pad_y))
    top = _integers(2 * pad_y + 1, count, generator, images.device)
    left = _integers(2 * pad_x + 1, count, generator, images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    sample = torch.arange(count, device=images.device)[:, None, None]
    # Channels last: one gather moves all channels of a pixel.
    moved = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    Args:
        images: (N, C, H, W).
        generator: Source of the choices.

    Returns:
        (N, C, H, W).
    """
    chosen = _integers(2, images.shape[0], generator, images.device).bool()
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken one square of each image, its side a quarter of the image's, its centre anywhere inside.

    Args:
        images: (N, C, H, W).
        generator: Source of the places.

    Returns:
        (N, C, H, W).

    Source:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017.
    """
    _, _, height, width = images.shape
    return _blacken(images, max(1, height // 8), max(1, width // 8), generator)


def cutout_2px(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blacken 2 x 2 pixels of each image; one row or column of them where the centre is on the upper or left edge.

    Args:
        images: (N, C, H, W).
        generator: Source of the places.

    Returns:
        (N, C, H, W).

    Source:
        What ``Cutout(1, 3)`` of ABL's released code does: one hole of side 3, which halves to 1 pixel on each side.
    """
    return _blacken(images, 1, 1, generator)


def _blacken(images: Tensor, half_y: int, half_x: int, generator: torch.Generator) -> Tensor:
    """Blacken rows centre - half_y up to centre + half_y, that one left out, and columns alike."""
    count, _, height, width = images.shape
    centre_y = _integers(height, count, generator, images.device)
    centre_x = _integers(width, count, generator, images.device)
    rows = torch.arange(height, device=images.device)[None, :] - centre_y[:, None]
    columns = torch.arange(width, device=images.device)[None, :] - centre_x[:, None]
    inside_y = (rows >= -half_y) & (rows < half_y)
    inside_x = (columns >= -half_x) & (columns < half_x)
    hole = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    return images.masked_fill(hole, 0)


AUGMENTATIONS: dict[AugmentName, Callable[[Tensor, torch.Generator], Tensor]] = {
    "crop": crop,
    "cutout": cutout,
    "cutout-2px": cutout_2px,
    "flip": flip,
}


def augment(images: Tensor, names: tuple[AugmentName, ...], generator: torch.Generator) -> Tensor:
    """Apply the named augmentations in order.

    Args:
        images: (N, C, H, W).
        names: Keys of ``AUGMENTATIONS``.
        generator: Source of every draw.

    Returns:
        (N, C, H, W); ``images`` itself when ``names`` is empty.
    """
    for name in names:
        images = AUGMENTATIONS[name](images, generator)
    return images
