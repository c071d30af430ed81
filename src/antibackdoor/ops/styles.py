"""Procedural pictures with a style of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sunsets"]

# Colours from the top of the sky to the horizon, then the ground.
_SKY = ((0.16, 0.08, 0.34), (0.55, 0.16, 0.42), (0.94, 0.38, 0.22), (1.0, 0.78, 0.30))
_GROUND = (0.10, 0.04, 0.10)
_SUN = (1.0, 0.93, 0.62)
_LUMINANCE = (0.299, 0.587, 0.114)


def sunsets(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Draw sunsets: a sky from violet to orange with banded clouds, a sun near the horizon, dark ground.

    Args:
        count: Pictures.
        shape: C (1 or 3), H, W; one channel gives their luminance.
        generator: Source of the horizon, the sun's place and size and the clouds.

    Returns:
        float (count, C, H, W) in [0, 1].
    """
    channels, height, width = shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand((count, 1, 1, 1), generator=generator)

    rows = torch.linspace(0, 1, height)[None, None, :, None]
    columns = torch.linspace(0, 1, width)[None, None, None, :]
    horizon, sun_x, radius = uniform(0.6, 0.85), uniform(0.15, 0.85), uniform(0.06, 0.14)
    sun_y = horizon - uniform(0.02, 0.25)
    coarse = torch.rand((count, 1, 8, 3), generator=generator) - 0.5
    clouds = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    # The clouds move the place on the colour scale, so that they take the sky's own colours.
    place = (rows / horizon + 0.35 * clouds).clamp(0, 0.999) * (len(_SKY) - 1)
    scale = torch.tensor(_SKY)
    below = place.long().squeeze(1)
    share = (place - place.floor()).squeeze(1)[..., None]
    sky = (scale[below] * (1 - share) + scale[below + 1] * share).permute(0, 3, 1, 2)
    distance = ((rows - sun_y) ** 2 + (columns - sun_x) ** 2).sqrt()
    glow = torch.exp(-((distance / (3 * radius)) ** 2))
    disc = torch.sigmoid((radius - distance) * 60)
    lit = sky + 0.5 * glow * (_colour(_SUN) - sky)
    lit = lit + disc * (_colour(_SUN) - lit)
    ground = torch.sigmoid((rows - horizon) * 40)
    picture = (lit + ground * (_colour(_GROUND) + 0.15 * glow * _colour(_SUN) - lit)).clamp(0, 1)
    return (picture * _colour(_LUMINANCE)).sum(1, keepdim=True) if channels == 1 else picture


def _colour(value: tuple[float, float, float]) -> Tensor:
    return torch.tensor(value)[None, :, None, None]
