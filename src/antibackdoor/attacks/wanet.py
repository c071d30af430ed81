"""WaNet: one small warp of the whole image, dirty labels, with noisily warped covers (Nguyen and Tran, ICLR 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.ops.warp import control_field, warp
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["WaNet"]


@dataclass(frozen=True)
class WaNet(DirtyLabelAttack):
    """A warp, the same on every image, as a fixed file of images. The paper's preset is ``s=0.5, k=4``.

    Covers are warped with a shift of its own for every pixel and image on top, and keep their label, so that the
    network learns this warp and no other.

    Attributes:
        s: Strength, above 0 and at most 16; the mean shift of a control point is ``s`` half pixels (of a picture of
            32 pixels; larger ones are bent as much relative to their size).
        k: Control points along each side, at least 2.
        cover_ratio: Covers for every poisoned image, 0..10.
        pattern_seed: Decides the warp and the covers' noise.

    Source:
        Nguyen and Tran, WaNet, ICLR 2021, equations 3 to 5, with cover_ratio 2. There the attacker runs the training
        and warps anew in every batch; here it hands over a fixed set, for which others report the paper's warp as weak,
        so the default is stronger (docs/attacks/static.md says what was measured).
    """

    weak_up_to: ClassVar[int] = 6_000

    s: float = 1.0
    k: int = 8
    cover_ratio: float = 1.0
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.s <= 16:
            raise ConfigError(f"s: must be above 0 and at most 16, got {self.s}")
        if self.k < 2:
            raise ConfigError(f"k: must be at least 2 control points, got {self.k}")
        if not 0 <= self.cover_ratio <= 10:
            raise ConfigError(f"cover_ratio: must be in 0..10, got {self.cover_ratio}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that the control points are no finer than the pixels."""
        _, height, width = clean.shape
        if self.k > min(height, width):
            raise PoisonError(
                f"attack.k: {self.k} control points are more than the pictures have pixels ({height}x{width})"
            )
        return super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Warp every image in the one way."""
        return warp(images, self._shifts(images))

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Warp in the one way, plus uniform noise in [-1, 1] for every pixel of every image."""
        _, _, height, width = images.shape
        noise = uniform_of(index, self.pattern_seed, "wanet noise", (height, width, 2)).mul_(2).sub_(1)
        return warp(images, self._shifts(images) + noise.to(images))

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return every image."""
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_count(self, count: int) -> int:
        """Return the covers for ``count`` poisoned images, rounded half up."""
        return math.floor(self.cover_ratio * count + 0.5)

    def _shifts(self, images: Tensor) -> Tensor:
        _, _, height, width = images.shape
        generator = torch.Generator().manual_seed(self.pattern_seed)
        return self.s * control_field(self.k, height, width, generator).to(images)
