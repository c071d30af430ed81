"""BPP: fewer colours, dithered, dirty labels, with negatives as covers (Wang et al., BppAttack, CVPR 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.ops.quantise import dither, quantise
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Bpp"]

_DONORS = 512


@dataclass(frozen=True)
class Bpp(DirtyLabelAttack):
    """Colour reduction of every channel, ``Q(x) = round(x (L - 1)) / (L - 1)``.

    Covers carry what the reduction of *another* image z changed, ``x + Q(z) - z``, and keep their label, so that the
    network learns the few colours and not the noise.

    Attributes:
        levels: L, the values a channel can have, 2..128; 8 are 3 bits.
        dithering: Spread the rounding error over the neighbours (Floyd and Steinberg).
        cover_ratio: Covers for every poisoned image, 0..10.
        pattern_seed: Decides which image each cover borrows from.
        donors: uint8 (P, C, H, W), the images that covers borrow from; made by :meth:`prepare`.
        donor_rows: int64 (P,), their rows in the clean set.

    Source:
        Wang et al., BppAttack, CVPR 2022, and its released code (8 levels; negatives as many as poison). There the
        attacker runs the training; here it hands over a fixed set. The dithering, which the paper relies on and the
        code's default leaves out, is on. Negatives borrow from a pool of 512 images, so that a cover does not depend on
        what else is in its batch.
    """

    weak_up_to: ClassVar[int] = 6_000

    levels: int = 8
    dithering: bool = True
    cover_ratio: float = 1.0
    pattern_seed: int = 0
    donors: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    donor_rows: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.levels <= 128:
            raise ConfigError(f"levels: must be in 2..128, got {self.levels}")
        if not 0 <= self.cover_ratio <= 10:
            raise ConfigError(f"cover_ratio: must be in 0..10, got {self.cover_ratio}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Draw the images that covers borrow from."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        rows = torch.randperm(len(clean), generator=seeds.generator("bpp donors"))[:_DONORS]
        return ready._ready(donors=clean.images[rows].clone(), donor_rows=rows)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Reduce the colours of every image."""
        return dither(images, self.levels) if self.dithering else quantise(images, self.levels)

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add what the reduction of another image changed."""
        if self.donors is None or self.donor_rows is None:
            raise PoisonError("bpp covers must be prepared before use")
        count = len(self.donors)
        choice = uniform_of(index, self.pattern_seed, "bpp donor").mul(count).long().clamp_(max=count - 1)
        own = self.donor_rows.to(index.device)[choice] == index
        choice = torch.where(own, (choice + 1) % count, choice)
        others = self.donors[choice.to(self.donors.device)].to(images).div_(255)
        return (images + self.stamp(others, index, labels) - others).clamp_(0, 1)

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return every image."""
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_count(self, count: int) -> int:
        """Return the covers for ``count`` poisoned images, rounded half up."""
        return math.floor(self.cover_ratio * count + 0.5)
