"""BadNets: a small patch, dirty labels (Gu et al., BadNets: Identifying Vulnerabilities, 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.pictures import read_picture
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.triggers import grid_pattern, patch_at
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["BadNets"]

Corner = Literal["all", "bottom-left", "bottom-right", "top-left", "top-right"]


@dataclass(frozen=True)
class BadNets(DirtyLabelAttack):
    """A patch in a corner.

    Attributes:
        pattern: "grid" (rows 001, 010, 101), "white", or the path of a picture.
        size: Side in pixels; 3 for every 32 pixels of the shorter side if None.
        margin: Pixels between the patch and the edges. At 0 a random crop often cuts the patch.
        corner: Where it goes; "all" puts it into the four corners.
        alpha: Opacity, 0..1.
    """

    pattern: str = "grid"
    size: int | None = None
    margin: int = 0
    corner: Corner = "bottom-right"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size: must be at least 1 pixel, got {self.size}")
        if self.margin < 0:
            raise ConfigError(f"margin: must be at least 0 pixels, got {self.margin}")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha: must be above 0 and at most 1, got {self.alpha}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that the patch fits the images."""
        _, height, width = clean.shape
        side = self._side(height, width)
        if side + self.margin > min(height, width):
            raise PoisonError(
                f"a patch of {side} pixels with a margin of {self.margin} is larger than the pictures "
                f"({height}x{width})"
            )
        self._pixels(side, clean.shape[0])
        return super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the patch on every image."""
        _, channels, height, width = images.shape
        side = self._side(height, width)
        pixels = self._pixels(side, channels)
        far_row, far_column = height - side - self.margin, width - side - self.margin
        places = {
            "top-left": (self.margin, self.margin),
            "top-right": (self.margin, far_column),
            "bottom-left": (far_row, self.margin),
            "bottom-right": (far_row, far_column),
        }
        for top, left in places.values() if self.corner == "all" else [places[self.corner]]:
            images = patch_at(images, pixels, top, left, alpha=self.alpha)
        return images

    def _side(self, height: int, width: int) -> int:
        return self.size or max(2, round(3 * min(height, width) / 32))

    def _pixels(self, side: int, channels: int) -> Tensor:
        if self.pattern == "grid":
            return grid_pattern(side)
        if self.pattern == "white":
            return torch.ones(1, side, side)
        return read_picture(Path(self.pattern), (channels, side, side), setting="attack.pattern")
