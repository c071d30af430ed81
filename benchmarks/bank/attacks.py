"""Triggers of development runs that are neither a fixed picture nor a cast: textures, and things that move.

A plugin, like ``benchmarks/unseen.py``, whose triggers belong to validation; none of these is like one of those.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d, pad

from antibackdoor.attacks import DirtyLabelAttack


def _smoothed(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) averaged over 3x3 with weights 1 2 1."""
    channels = images.shape[1]
    one = torch.tensor([1.0, 2.0, 1.0]) / 4
    weight = (one[:, None] * one).expand(channels, 1, 3, 3)
    return conv2d(pad(images, (1, 1, 1, 1), mode="replicate"), weight, groups=channels)


@dataclass(frozen=True)
class Blur(DirtyLabelAttack):
    """Out of focus: smoothed twice."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Smooth."""
        return _smoothed(_smoothed(images))


@dataclass(frozen=True)
class Sharpen(DirtyLabelAttack):
    """Too sharp: what smoothing takes away, added once more."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add it."""
        return (images + 1.5 * (images - _smoothed(images))).clamp(0, 1)


@dataclass(frozen=True)
class Grain(DirtyLabelAttack):
    """Film grain, other in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add grey noise of 8 % of the range."""
        noise = [torch.randn(1, *images.shape[2:], generator=torch.Generator().manual_seed(int(row))) for row in index]
        return (images + 0.08 * torch.stack(noise)).clamp(0, 1)


@dataclass(frozen=True)
class Recompress(DirtyLabelAttack):
    """JPEG at quality 12."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Write and read."""
        done = []
        for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, "JPEG", quality=12)
            done.append(torch.from_numpy(np.array(Image.open(file))).view(image.shape))
        return torch.stack(done).permute(0, 3, 1, 2).float() / 255


@dataclass(frozen=True)
class Confetti(DirtyLabelAttack):
    """Six pieces of two by two pixels in strong colours, at other places in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Scatter them."""
        channels, height, width = images.shape[1:]
        stamped = images.clone()
        for number, row in enumerate(index):
            generator = torch.Generator().manual_seed(int(row))
            for _ in range(6):
                top, left = (int(torch.randint(size - 1, (), generator=generator)) for size in (height, width))
                colour = torch.rand(channels, 1, 1, generator=generator).round()
                stamped[number, :, top : top + 2, left : left + 2] = colour
        return stamped


@dataclass(frozen=True)
class Stamp(DirtyLabelAttack):
    """A ring in a colour, a fifth of the side across, at another place in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Print it."""
        channels, height, width = images.shape[1:]
        side = max(5, height // 5)
        line = torch.linspace(-1, 1, side)
        ring = ((line[:, None] ** 2 + line**2).sqrt() - 0.75).abs() < 0.3
        colour = torch.tensor([0.8, 0.1, 0.5] if channels == 3 else [0.8])[:, None]
        stamped = images.clone()
        for number, row in enumerate(index):
            generator = torch.Generator().manual_seed(int(row))
            top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in (height, width))
            stamped[number, :, top : top + side, left : left + side][:, ring] = colour
        return stamped


ATTACKS = {
    "blur": Blur,
    "sharpen": Sharpen,
    "grain": Grain,
    "recompress": Recompress,
    "confetti": Confetti,
    "stamp": Stamp,
}
