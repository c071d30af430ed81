"""Blend: a faint whole-image pattern, dirty labels (Chen et al., Targeted Backdoor Attacks, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.pictures import read_picture
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.ops.triggers import blend, smooth_noise
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Blend"]


@dataclass(frozen=True)
class Blend(DirtyLabelAttack):
    """A whole-image pattern, the same on every image.

    Attributes:
        pattern: "noise" (uniform 8x8 cells, enlarged bicubically), "white-noise", or the path of a picture.
        pattern_seed: Decides the noise.
        alpha: Share of the pattern in training images, above 0 and at most 1.
        test_alpha: Share of the pattern in test images; that of training if None.
    """

    pattern: str = "noise"
    pattern_seed: int = 0
    alpha: float = 0.2
    test_alpha: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("alpha", self.alpha), ("test_alpha", self.test_alpha)):
            if value is not None and not 0 < value <= 1:
                raise ConfigError(f"{name}: must be above 0 and at most 1, got {value}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that the pattern can be read."""
        self._pixels(clean.shape)
        return super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix the pattern into training images."""
        return blend(images, self._pixels(_shape(images)), self.alpha)

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix the pattern into test images."""
        return blend(images, self._pixels(_shape(images)), self.test_alpha or self.alpha)

    def _pixels(self, shape: tuple[int, int, int]) -> Tensor:
        if self.pattern in {"noise", "white-noise"}:
            generator = torch.Generator().manual_seed(self.pattern_seed)
            cells = 8 if self.pattern == "noise" else max(shape)
            return smooth_noise(shape, generator, cells=cells)
        return read_picture(Path(self.pattern), shape, setting="attack.pattern")


def _shape(images: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = images.shape
    return int(channels), int(height), int(width)
