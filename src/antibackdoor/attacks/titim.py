"""TITIM: a trigger of other opacities in training than at test (Lin et al., USENIX Security 2025)."""

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
from antibackdoor.ops.patches import Corner, Overlay, lay, overlay_of, scaled
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.ops.triggers import grid_pattern, smooth_noise
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Titim"]

_SHARE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Titim(DirtyLabelAttack):
    """A patch or a whole picture, faint or strong in training by the image, and of one more opacity at test.

    Attributes:
        trigger: "patch" (in a corner) or "blend" (over the whole image).
        operation: "mix" is ``x (1 - a) + a t``, "add" is ``clip(x + a t)``; both inside the patch only.
        alphas: Opacities a of poisoned training images, each above 0 and at most 1.
        shares: Share of the poisoned images with each of them, adding up to 1; equal shares if None.
        test_alpha: Opacity at test, above 0 and at most 1.
        pattern: "grid" (patch only: rows 001, 010, 101), "white", "noise" (8x8 cells, enlarged bicubically),
            "white-noise", or the path of a picture. None is "grid" for a patch and "noise" for a blend.
        pattern_seed: Decides the noise, and which image gets which opacity.
        size: Side of a patch in pixels; 3 for every 32 pixels of the shorter side if None.
        margin: Pixels between a patch and the edges.
        corner: Where a patch goes.

    Source:
        Lin et al., Revisiting Training-Inference Trigger Intensity in Backdoor Attacks, USENIX Security 2025: what is
        learned from a faint trigger works with a strong one, and opacities mixed in training mislead filters. Which
        image gets which opacity is a function of its row here, so that a poisoned set is the same in any order.
    """

    trigger: Literal["blend", "patch"] = "patch"
    operation: Literal["add", "mix"] = "mix"
    alphas: tuple[float, ...] = (1.0, 0.1)
    shares: tuple[float, ...] | None = None
    test_alpha: float = 1.0
    pattern: str | None = None
    pattern_seed: int = 0
    size: int | None = None
    margin: int = 0
    corner: Corner = "bottom-right"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alphas:
            raise ConfigError("alphas: must hold one opacity at least")
        for name, values in (("alphas", self.alphas), ("test_alpha", (self.test_alpha,))):
            for value in values:
                if not 0 < value <= 1:
                    raise ConfigError(f"{name}: must be above 0 and at most 1, got {value}")
        if self.shares is not None:
            if len(self.shares) != len(self.alphas):
                raise ConfigError(
                    f"shares: must be as many as alphas, got {len(self.shares)} for {len(self.alphas)} opacities"
                )
            if min(self.shares) < 0 or not abs(sum(self.shares) - 1) <= _SHARE_TOLERANCE:
                raise ConfigError(f"shares: must be at least 0 and add up to 1, got {self.shares}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size: must be at least 1 pixel, got {self.size}")
        if self.margin < 0:
            raise ConfigError(f"margin: must be at least 0 pixels, got {self.margin}")
        if self.trigger == "blend" and self.pattern == "grid":
            raise ConfigError("pattern: grid is for a patch; a blend takes white, noise, white-noise or a picture")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that the trigger fits the images."""
        self._overlay(clean.shape)
        return super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the trigger on training images, each with the opacity of its row."""
        return self._stamped(images, self.opacities(index).to(images))

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the trigger on test images, with the opacity of the test."""
        return self._stamped(images, images.new_full((len(images),), self.test_alpha))

    def opacities(self, index: Tensor) -> Tensor:
        """Return the opacity in training of each row: int64 (N,) -> float (N,)."""
        count = len(self.alphas)
        shares = torch.tensor(self.shares or (1 / count,) * count, device=index.device)
        draws = uniform_of(index, self.pattern_seed, "titim opacity")
        choice = (draws[:, None] >= shares.cumsum(0)[None, :-1]).sum(1)
        return torch.tensor(self.alphas, device=index.device)[choice]

    def _stamped(self, images: Tensor, opacity: Tensor) -> Tensor:
        _, channels, height, width = images.shape
        overlay = self._overlay((int(channels), int(height), int(width)))
        weight = opacity[:, None, None, None] * overlay.weight.to(images)
        if self.operation == "mix":
            return lay(images, Overlay(weight, overlay.ink))
        return (images + weight * overlay.ink.to(images)).clamp(0, 1)

    def _overlay(self, shape: tuple[int, int, int]) -> Overlay:
        channels, height, width = shape
        if self.trigger == "blend":
            return Overlay(torch.ones(1, height, width), self._pixels(shape).expand(shape))
        side = self.size or max(2, scaled(3, shape))
        if side + self.margin > min(height, width):
            raise PoisonError(
                f"a patch of {side} pixels with a margin of {self.margin} is larger than the pictures "
                f"({height}x{width})"
            )
        pixels = self._pixels((channels, side, side))
        return overlay_of(pixels, torch.ones(1, side, side), shape, (self.corner,), self.margin)

    def _pixels(self, shape: tuple[int, int, int]) -> Tensor:
        pattern = self.pattern or ("grid" if self.trigger == "patch" else "noise")
        if pattern == "grid":
            return grid_pattern(shape[1])
        if pattern == "white":
            return torch.ones(1, *shape[1:])
        if pattern in {"noise", "white-noise"}:
            generator = torch.Generator().manual_seed(self.pattern_seed)
            return smooth_noise(shape, generator, cells=8 if pattern == "noise" else max(shape))
        return read_picture(Path(pattern), shape, setting="attack.pattern")
