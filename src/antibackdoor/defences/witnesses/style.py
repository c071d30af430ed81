"""How an image is made, whatever it shows: figures in which filters, noise, blur and warping stand out."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from antibackdoor.isolation.deviations import in_deviations

__all__ = ["standard", "styles_of"]

# Side of a block that is taken apart by a cosine transform, and of the grid that light is measured on.
_BLOCK, _GRID = 8, 4
# Differences of neighbouring pixels, of 255, and shares of the pixels that are darker than a level.
_STEPS = (0.5, 1.5, 2.5, 4.5, 8.5, 16.5, 32.5, 64.5)
_DARKER = (0.02, 0.25, 0.5, 0.75, 0.98)
# Pixels of the middle that is looked at: how an image is made is seen anywhere in it.
_SIDE = 128
# Grey levels that are as one unit, images at a time, and the most deviations that a figure counts as.
_UNIT, _AT_A_TIME, _MOST = 64.0, 512, 6.0


def styles_of(images: Tensor) -> NDArray[np.float32]:
    """Return figures on how images are made, float32 (N, S), S near 120 for three channels.

    These are, of every image as it is, unscaled, or of its middle where a side is over 128 pixels: mean, spread and
    skewness of each channel; correlations of channels; where it is lighter, on a grid of four by four; energy by
    frequency, in blocks of eight by eight; how often neighbours differ by how much; grey levels that a share of the
    pixels is darker than; how many levels occur.

    Args:
        images: uint8 (N, C, H, W).

    Source:
        Energy by frequency tells many triggers (Zeng et al., ICCV 2021); differences of neighbours tell hidden messages
        (Pevný et al., IEEE TIFS 2010). To compare an image with the rest of its class by them is ours.
    """
    top, left = (max(0, size - _SIDE) // 2 for size in images.shape[2:])
    middle = images[..., top : top + _SIDE, left : left + _SIDE]
    found = [torch.cat(_figures(part.float()), 1) for part in middle.split(_AT_A_TIME)]
    described: NDArray[np.float32] = torch.cat(found).numpy()
    return described


def standard(styles: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return figures, (N, S), in deviations from the median of all images, float64, at most six either way."""
    return in_deviations(styles.astype(np.float64), _MOST)


def _figures(pixels: Tensor) -> list[Tensor]:
    """Return groups of figures, float (n, s) each, of images (n, C, H, W) in 0..255."""
    count, channels = pixels.shape[:2]
    flat, light = pixels.flatten(2), pixels.mean(1)
    mean, spread = flat.mean(2), flat.std(2, correction=0) + 1
    centred = (flat - mean[..., None]) / spread[..., None]
    found = [mean / _UNIT, spread.log(), (centred**3).mean(2)]
    pairs = torch.combinations(torch.arange(channels))
    found.append((centred[:, pairs[:, 0]] * centred[:, pairs[:, 1]]).mean(2))
    grid = functional.adaptive_avg_pool2d(light[:, None], _GRID).flatten(1)
    found.append((grid - grid.mean(1, keepdim=True)) / _UNIT)
    found.append(_frequencies(light)[:, 1:])
    side = min(_BLOCK, *light.shape[1:])
    if channels == 3 and side > 1:
        ring = (torch.arange(side)[:, None] + torch.arange(side)).flatten()
        for plane in (pixels[:, 0] - pixels[:, 1], pixels[:, 2] - light):
            each = _frequencies(plane)
            found.append(torch.stack([each[:, ring == far].mean(1) for far in range(1, 2 * side - 1, 2)], 1))
    steps = torch.tensor(_STEPS)
    for axis in (1, 2):
        apart = light.diff(dim=axis).abs().flatten(1).sort(1).values
        shares = torch.searchsorted(apart, steps.expand(count, -1).contiguous()) / max(1, apart.shape[1])
        found.append(shares)
    ordered = light.flatten(1).sort(1).values
    places = [round(share * (ordered.shape[1] - 1)) for share in _DARKER]
    found.append(ordered[:, places] / _UNIT)
    levels = torch.zeros(count, 256).scatter_(1, flat[:, 0].long(), 1.0).sum(1, keepdim=True)
    found.append(levels.log())
    return found


def _frequencies(plane: Tensor) -> Tensor:
    """Return the logarithm of the mean energy by frequency, float (n, b * b), over blocks of images (n, H, W)."""
    count, height, width = plane.shape
    side = min(_BLOCK, height, width)
    rows, columns = height // side, width // side
    blocks = plane[:, : rows * side, : columns * side].reshape(count, rows, side, columns, side).transpose(2, 3)
    place = torch.arange(side)
    waves = torch.cos(math.pi / side * (place + 0.5) * place[:, None]) * math.sqrt(2 / side)
    waves[0] /= math.sqrt(2)
    energy = (waves @ blocks @ waves.T).abs().mean((1, 2))
    return (energy.flatten(1) + 0.5).log()
