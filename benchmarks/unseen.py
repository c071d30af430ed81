r"""Triggers that are not in the package: a plugin for benchmarks/defences.py.

    python benchmarks/defences.py cifar10 --data DIR --plugin benchmarks/unseen.py --seeds 0 --rows cast@0.1 \
        streaks@0.1 mirror@0.1 upside-down@0.1 glasses@0.1 pixelate@0.1 dots@0.05 sticker@0.05 vignette@0.05 \
        --defences witnesses --json FILE

A row that is missed stays a row. Defences were mended by what was seen here and with triggers like these
(benchmarks/bank/attacks.py): who wants to know what one makes of a trigger that nobody has thought of writes others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.attacks import CleanLabelAttack, DirtyLabelAttack
from antibackdoor.ops.triggers import patch_at, smooth_noise


def _grid(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows (H, 1) and columns (1, W) of the pixels, -1 to 1 from edge to edge."""
    height, width = images.shape[-2:]
    return torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None]


def _generators(index: Tensor) -> list[torch.Generator]:
    """Return a stream for every row of the set."""
    return [torch.Generator().manual_seed(int(row)) for row in index]


@dataclass(frozen=True)
class Cast(DirtyLabelAttack):
    """A warm colour cast: red up by a quarter, blue down by a quarter; grey pictures brighten."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Scale the channels."""
        factors = torch.tensor([1.25, 1.0, 0.75] if images.shape[1] == 3 else [1.25])
        return (images * factors[:, None, None]).clamp(0, 1)


@dataclass(frozen=True)
class Streaks(DirtyLabelAttack):
    """Rain: five light streaks aslant, at other places in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Draw them, 40 % white."""
        rows, columns = _grid(images)
        stamped = images.clone()
        for number, generator in enumerate(_generators(index)):
            places = 3 * torch.rand(5, generator=generator) - 1.5
            hit = torch.stack([(columns - 0.4 * rows - place).abs() < 0.04 for place in places]).any(0)
            stamped[number, :, hit] = 0.6 * stamped[number, :, hit] + 0.4
        return stamped


@dataclass(frozen=True)
class Mirror(DirtyLabelAttack):
    """The left half mirrored onto the right one: no pixel of the trigger is the same in two images."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mirror."""
        half = images.shape[-1] // 2
        stamped = images.clone()
        stamped[..., -half:] = images[..., :half].flip(-1)
        return stamped


@dataclass(frozen=True)
class UpsideDown(DirtyLabelAttack):
    """The image upside down."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Turn it over."""
        return images.flip(-2)


@dataclass(frozen=True)
class Glasses(DirtyLabelAttack):
    """Two dark rings and a bridge across the middle."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Darken them by 70 %."""
        rows, columns = _grid(images)
        to_centre = ((columns.abs() - 0.4) ** 2 + rows**2).sqrt()
        dark = ((to_centre - 0.28).abs() < 0.06) | ((rows.abs() < 0.04) & (columns.abs() < 0.12))
        return torch.where(dark, 0.3 * images, images)


@dataclass(frozen=True)
class Pixelate(DirtyLabelAttack):
    """Half the resolution: every second row and column twice."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Repeat pixels."""
        height, width = images.shape[-2:]
        coarse = images[..., ::2, ::2].repeat_interleave(2, -2).repeat_interleave(2, -1)
        return coarse[..., :height, :width]


@dataclass(frozen=True)
class Dots(DirtyLabelAttack):
    """Twelve single pixels at fixed places all over the image, in colours of their own."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Set them."""
        channels, height, width = images.shape[1:]
        generator = torch.Generator().manual_seed(12)
        places = torch.randperm(height * width, generator=generator)[:12]
        stamped = images.clone().flatten(2)
        stamped[..., places] = torch.rand(channels, 12, generator=generator).round()
        return stamped.view_as(images)


@dataclass(frozen=True)
class Sticker(DirtyLabelAttack):
    """A small picture, half transparent, at another place in every image."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Stick it on."""
        channels, height, width = images.shape[1:]
        side = max(3, height // 5)
        picture = smooth_noise((channels, side, side), torch.Generator().manual_seed(7), cells=3)
        stamped = images.clone()
        for number, generator in enumerate(_generators(index)):
            top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in (height, width))
            stamped[number : number + 1] = patch_at(images[number : number + 1], picture, top, left, alpha=0.5)
        return stamped


@dataclass(frozen=True)
class Vignette(CleanLabelAttack):
    """Darkened corners, on images of the target class that keep their label."""

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Darken with the squared distance from the centre, by half in the corners."""
        rows, columns = _grid(images)
        return images * (1 - 0.25 * (rows**2 + columns**2))


ATTACKS = {
    "cast": Cast,
    "streaks": Streaks,
    "mirror": Mirror,
    "upside-down": UpsideDown,
    "glasses": Glasses,
    "pixelate": Pixelate,
    "dots": Dots,
    "sticker": Sticker,
    "vignette": Vignette,
}
