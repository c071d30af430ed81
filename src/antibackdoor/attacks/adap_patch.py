"""Adap-Patch: one of four faint patches on each image, dirty labels, with covers (Qi et al., ICLR 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.patches import Corner, Overlay, colour_cells, disc, enlarge, lay, overlay_of, scaled
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.ops.triggers import grid_pattern, smooth_noise
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["AdapPatch"]

# Name -> opacity in training. Sides, places and opacities are those of the paper's four pictures.
_OPACITY = {"tile": 0.5, "disc": 0.2, "corners": 0.5, "square": 0.3}
_TEST = {"corners+tile": ("tile", "corners"), "disc+square": ("disc", "square"), "all": tuple(_OPACITY)}


@dataclass(frozen=True)
class AdapPatch(DirtyLabelAttack):
    """Every training image carries one patch of four, faintly; test images carry several, opaque.

    The patches, for pictures of 32 pixels: "tile", 5x5 colours at the bottom right; "disc", 13 pixels wide at the top
    right; "corners", the 3x3 grid of BadNets in all four corners; "square", 8x8 colours, 3 pixels from the bottom
    right. Covers carry one in the same way and keep their label. Made for rates of 0.1 % to 1 %.

    Attributes:
        opacity: Factor on the opacities in training (0.5, 0.2, 0.5, 0.3 in that order), above 0 and at most 2.
        test_opacity: Opacity in test images, above 0 and at most 1.
        test_patches: Which patches test images carry.
        cover_ratio: Covers for every poisoned image, 0..10.
        pattern_seed: Decides the colours and which patch each image carries.

    Source:
        Qi et al., Revisiting the Assumption of Latent Separability for Backdoor Defenses, ICLR 2023: the same sides,
        opacities and covers. Its patches are pictures of brands, ours are drawn; those at the edge stay one pixel away
        from it, since a victim's random crops cut what touches it. It tests two patches, and poisons images of the
        target class too, ours only others.
    """

    weak_up_to: ClassVar[int] = 6_000

    opacity: float = 1.0
    test_opacity: float = 1.0
    test_patches: Literal["all", "corners+tile", "disc+square"] = "disc+square"
    cover_ratio: float = 2.0
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.opacity <= 2:
            raise ConfigError(f"opacity: must be above 0 and at most 2, got {self.opacity}")
        if not 0 < self.test_opacity <= 1:
            raise ConfigError(f"test_opacity: must be above 0 and at most 1, got {self.test_opacity}")
        if not 0 <= self.cover_ratio <= 10:
            raise ConfigError(f"cover_ratio: must be in 0..10, got {self.cover_ratio}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that the patches can be told from one another at this size."""
        _, height, width = clean.shape
        if min(height, width) < 16:
            raise PoisonError(f"adap-patch needs pictures of at least 16 pixels a side, got {height}x{width}")
        return super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put one patch on each training image."""
        patches = self._patches(images)
        weights = torch.stack([self.opacity * _OPACITY[name] * patches[name].weight for name in _OPACITY])
        inks = torch.stack([patches[name].ink for name in _OPACITY])
        choice = uniform_of(index, self.pattern_seed, "adap-patch choice").mul(len(_OPACITY)).long()
        choice = choice.clamp_(max=len(_OPACITY) - 1).to(images.device)
        return lay(images, Overlay(weights.to(images)[choice], inks.to(images)[choice]))

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put several patches on test images."""
        patches = self._patches(images)
        for name in _TEST[self.test_patches]:
            images = lay(images, Overlay(self.test_opacity * patches[name].weight, patches[name].ink))
        return images

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return every image."""
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_count(self, count: int) -> int:
        """Return the covers for ``count`` poisoned images, rounded half up."""
        return math.floor(self.cover_ratio * count + 0.5)

    def _patches(self, images: Tensor) -> dict[str, Overlay]:
        _, channels, height, width = images.shape
        shape = int(channels), int(height), int(width)
        generator = torch.Generator().manual_seed(self.pattern_seed)
        tile, square = colour_cells(shape[0], 5, generator), colour_cells(shape[0], 8, generator)
        sides = {"tile": scaled(5, shape), "disc": scaled(13, shape), "corners": scaled(3, shape)}
        sides["square"] = scaled(8, shape)
        picture = smooth_noise((shape[0], sides["disc"], sides["disc"]), generator, cells=4)
        edge = max(1, scaled(1, shape))
        corners: tuple[Corner, ...] = ("bottom-left", "bottom-right", "top-left", "top-right")
        return {
            "tile": _block(enlarge(tile, sides["tile"]), shape, ("bottom-right",), edge),
            "disc": overlay_of(picture, disc(sides["disc"]), shape, ("top-right",), edge),
            "corners": _block(grid_pattern(sides["corners"]), shape, corners, edge),
            "square": _block(enlarge(square, sides["square"]), shape, ("bottom-right",), scaled(3, shape)),
        }


def _block(pixels: Tensor, shape: tuple[int, int, int], corners: tuple[Corner, ...], margin: int) -> Overlay:
    return overlay_of(pixels, torch.ones_like(pixels[:1]), shape, corners, margin)
