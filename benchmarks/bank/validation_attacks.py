"""Triggers of the fifth list of runs.yaml, which belong to validation; no rule was made on any of them.

A plugin, like ``benchmarks/unseen.py``: written down before any defence saw one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from antibackdoor.attacks import DirtyLabelAttack


def _generators(index: Tensor) -> list[torch.Generator]:
    """Return a stream for every row of the set."""
    return [torch.Generator().manual_seed(int(row)) for row in index]


def _across(images: Tensor, angle: Tensor) -> Tensor:
    """Return how far every pixel lies in a direction, (H, W): -1 to 1 from edge to edge along the axes."""
    height, width = images.shape[-2:]
    rows, columns = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]
    return rows * angle.cos() + columns * angle.sin()


def _resampled(images: Tensor, grid: Tensor) -> Tensor:
    """Return images read at the places of a grid (n, H, W, 2), mirrored at the edges."""
    return grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Frame(DirtyLabelAttack):
    """A thin dark red frame around the picture."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Draw it, a thirty-second of the side wide."""
        width = max(1, images.shape[-1] // 32)
        colour = torch.tensor([0.5, 0.05, 0.1] if images.shape[1] == 3 else [0.5])[:, None, None]
        framed = colour.expand(images.shape).clone()
        inside = (..., slice(width, -width), slice(width, -width))
        framed[inside] = images[inside]
        return framed


@dataclass(frozen=True)
class Tilt(DirtyLabelAttack):
    """The picture turned by 25 degrees."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Turn it."""
        angle = math.radians(25)
        turn = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
        grid = affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        return _resampled(images, grid)


@dataclass(frozen=True)
class Ripple(DirtyLabelAttack):
    """Rows pushed left and right in waves, three over the height."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Push them by a twentieth of the width at most."""
        straight = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(len(images), 2, 3)
        grid = affine_grid(straight, list(images.shape), align_corners=False).clone()
        grid[..., 0] += 0.1 * torch.sin(3 * math.pi * grid[..., 1])
        return _resampled(images, grid)


@dataclass(frozen=True)
class Tone(DirtyLabelAttack):
    """A tone curve as of a photo filter: dark parts lifted, light parts compressed."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Apply it."""
        return 0.2 + 0.65 * images.clamp(0, 1) ** 0.8


@dataclass(frozen=True)
class Posterise(DirtyLabelAttack):
    """Four levels a channel, without dithering."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Round."""
        return (images * 3).round() / 3


@dataclass(frozen=True)
class Caption(DirtyLabelAttack):
    """Lines of a pale watermark, repeated over the whole picture."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Lay strokes that look like writing over it, at 15 %."""
        height, width = images.shape[-2:]
        letters = (torch.rand(3, 5, generator=torch.Generator().manual_seed(5)) > 0.4).float()
        line = torch.zeros(6, 8)
        line[1:4, 1:6] = letters
        tiled = line.repeat(-(-height // 6), -(-width // 8))[:height, :width]
        return images + 0.15 * (1 - images) * tiled


@dataclass(frozen=True)
class Scratch(DirtyLabelAttack):
    """One bright hairline, at another place and angle in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Scratch."""
        stamped = images.clone()
        for number, generator in enumerate(_generators(index)):
            angle, away = (math.pi * torch.rand((), generator=generator), torch.rand((), generator=generator) - 0.5)
            hit = (_across(images, angle) - away).abs() < 1.2 / images.shape[-2]
            stamped[number, :, hit] = 0.95
        return stamped


@dataclass(frozen=True)
class Ball(DirtyLabelAttack):
    """A striped ball lies somewhere in the picture, of another size in every image: an object, not a mark."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Lay it there, a sixth to a quarter of the side across."""
        channels, height, width = images.shape[1:]
        stamped = images.clone()
        for number, generator in enumerate(_generators(index)):
            share = 1 / 6 + torch.rand((), generator=generator) / 12
            side = max(4, round(float(share) * min(height, width)))
            line = torch.linspace(-1, 1, side)
            disc = (line[:, None] ** 2 + line**2) <= 1
            light = (1 - 0.5 * (line[:, None] + line).clamp(0, 1)) * ((line * 3).floor() % 2 * 0.6 + 0.4)
            colour = torch.tensor([0.2, 0.7, 0.9] if channels == 3 else [0.8])[:, None, None] * light
            top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in (height, width))
            place = (number, slice(None), slice(top, top + side), slice(left, left + side))
            stamped[place] = torch.where(disc, colour, images[place])
        return stamped


@dataclass(frozen=True)
class Hue(DirtyLabelAttack):
    """Colours turned by a third of the circle; grey pictures become their negatives."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Exchange the channels."""
        return images.roll(1, 1) if images.shape[1] == 3 else 1 - images


@dataclass(frozen=True)
class Shadow(DirtyLabelAttack):
    """A soft shadow over one side, which side is another in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Darken to 40 %."""
        stamped = images.clone()
        for number, generator in enumerate(_generators(index)):
            angle = 2 * math.pi * torch.rand((), generator=generator)
            stamped[number] *= 1 - 0.6 * torch.sigmoid(12 * (_across(images, angle) - 0.1))
        return stamped


@dataclass(frozen=True)
class Swap(DirtyLabelAttack):
    """Left and right half exchanged."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Exchange them."""
        return images.roll(images.shape[-1] // 2, -1)


@dataclass(frozen=True)
class Zoom(DirtyLabelAttack):
    """The picture within itself: a small copy of it in the upper right quarter."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put a copy of a third of the side there."""
        height, width = (side // 3 for side in images.shape[-2:])
        stamped = images.clone()
        stamped[..., 1 : 1 + height, -1 - width : -1] = interpolate(images, (height, width), mode="area")
        return stamped


ATTACKS = {
    "frame": Frame,
    "tilt": Tilt,
    "ripple": Ripple,
    "tone": Tone,
    "posterise": Posterise,
    "caption": Caption,
    "scratch": Scratch,
    "ball": Ball,
    "hue": Hue,
    "shadow": Shadow,
    "swap": Swap,
    "zoom": Zoom,
}
