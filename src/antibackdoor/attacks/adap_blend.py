"""Adap-Blend: pieces of a faint pattern, dirty labels, with covers (Qi et al., ICLR 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.pictures import read_picture
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.patches import Overlay, lay
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.ops.triggers import blend, smooth_noise
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["AdapBlend"]


@dataclass(frozen=True)
class AdapBlend(DirtyLabelAttack):
    """Every training image carries some cells of a whole-image pattern; test images carry all of it, and stronger.

    Covers carry cells in the same way and keep their label. Poison and clean images then lie close together in the
    feature space, where defences look for them apart. Made for rates of 0.1 % to 1 %.

    Attributes:
        pattern: "noise" (uniform 8x8 cells, enlarged bicubically), "white-noise", or the path of a picture.
        pattern_seed: Decides the noise and the cells of each image.
        alpha: Share of the pattern in the cells of training images, above 0 and at most 1.
        test_alpha: Share of the whole pattern in test images, above 0 and at most 1.
        pieces: Cells along each side, at least 1.
        kept: Cells that a training image carries, 1..pieces squared.
        cover_ratio: Covers for every poisoned image, 0..10.

    Source:
        Qi et al., Revisiting the Assumption of Latent Separability for Backdoor Defenses, ICLR 2023: 4x4 cells of which
        8 are kept, 0.15 in training and 0.2 in tests, as many covers as poison. Its pattern is a copyrighted picture,
        ours is noise; it poisons images of the target class too, ours only others.
    """

    weak_up_to: ClassVar[int] = 6_000

    pattern: str = "noise"
    pattern_seed: int = 0
    alpha: float = 0.15
    test_alpha: float = 0.2
    pieces: int = 4
    kept: int = 8
    cover_ratio: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("alpha", self.alpha), ("test_alpha", self.test_alpha)):
            if not 0 < value <= 1:
                raise ConfigError(f"{name}: must be above 0 and at most 1, got {value}")
        if self.pieces < 1:
            raise ConfigError(f"pieces: must be at least 1 cell, got {self.pieces}")
        if not 1 <= self.kept <= self.pieces**2:
            raise ConfigError(f"kept: must be in 1..{self.pieces**2} cells, got {self.kept}")
        if not 0 <= self.cover_ratio <= 10:
            raise ConfigError(f"cover_ratio: must be in 0..10, got {self.cover_ratio}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that the pattern can be read and that its cells are no finer than the pixels."""
        _, height, width = clean.shape
        if self.pieces > min(height, width):
            raise PoisonError(
                f"attack.pieces: {self.pieces} cells a side are more than the pictures have pixels ({height}x{width})"
            )
        self._pixels(clean.shape)
        return super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix some cells of the pattern into each training image."""
        _, channels, height, width = images.shape
        draws = uniform_of(index, self.pattern_seed, "adap-blend cells", (self.pieces**2,))
        cells = torch.zeros_like(draws).scatter_(1, draws.argsort(dim=1, stable=True)[:, : self.kept], 1.0)
        cells = cells.reshape(len(index), 1, self.pieces, self.pieces)
        rows = (torch.arange(height, device=cells.device) * self.pieces).div(height, rounding_mode="floor")
        columns = (torch.arange(width, device=cells.device) * self.pieces).div(width, rounding_mode="floor")
        weight = self.alpha * cells[:, :, rows][:, :, :, columns]
        return lay(images, Overlay(weight, self._pixels((channels, height, width))))

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix the whole pattern into test images."""
        _, channels, height, width = images.shape
        return blend(images, self._pixels((channels, height, width)), self.test_alpha)

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return every image."""
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_count(self, count: int) -> int:
        """Return the covers for ``count`` poisoned images, rounded half up."""
        return math.floor(self.cover_ratio * count + 0.5)

    def _pixels(self, shape: tuple[int, int, int]) -> Tensor:
        if self.pattern in {"noise", "white-noise"}:
            generator = torch.Generator().manual_seed(self.pattern_seed)
            return smooth_noise(shape, generator, cells=8 if self.pattern == "noise" else max(shape))
        return read_picture(Path(self.pattern), shape, setting="attack.pattern")
