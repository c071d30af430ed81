"""TaCT: a patch that works on one source class only, with covers of the others (Tang et al., USENIX Security 2021)."""

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
from antibackdoor.ops.patches import Overlay, colour_cells, enlarge, lay, overlay_of, scaled
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["TaCT"]


@dataclass(frozen=True)
class TaCT(DirtyLabelAttack):
    """A patch that sends images of the source class to the target, and no others.

    Only images of the source class are poisoned; covers are triggered images of other classes with their own label.
    ASR is measured on the source class alone. At a rate of the source class's whole share no clean image of it is left.

    Attributes:
        source: Class whose images are poisoned; class 0 if None, or 1 where 0 is the target.
        cover_classes: Classes that covers come from; all but source and target if None.
        cover_ratio: Covers for every poisoned image, 0..10.
        pattern: "noise" (8x8 cells of full colours) or the path of a picture.
        pattern_seed: Decides the noise.
        size: Side in pixels; 8 for every 32 pixels of the shorter side if None.
        margin: Pixels between the patch and the bottom right edges; 3 for every 32 if None.
        alpha: Opacity, above 0 and at most 1.

    Source:
        Tang et al., Demon in the Variant, USENIX Security 2021; the place, the size and one cover for every poisoned
        image as in the backdoor toolbox of Qi et al. Covers come from two or three classes there, from all here, since
        the patch is else free to work on the classes that were left out.
    """

    several_targets: ClassVar[bool] = False

    source: int | None = None
    cover_classes: tuple[int, ...] | None = None
    cover_ratio: float = 1.0
    pattern: str = "noise"
    pattern_seed: int = 0
    size: int | None = None
    margin: int | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is not None and self.source < 0:
            raise ConfigError(f"source: must be a class index of at least 0, got {self.source}")
        if self.labelling == "all-to-one" and self.source == self.target:
            raise ConfigError(f"source: must differ from the target, got {self.source} for both")
        if self.cover_classes is not None and self._source in self.cover_classes:
            raise ConfigError(f"cover_classes: must not hold the source class {self._source}, got {self.cover_classes}")
        if self.cover_classes is not None and not self.cover_classes:
            raise ConfigError("cover_classes: must name a class, got none; for no covers set cover_ratio to 0")
        if not 0 <= self.cover_ratio <= 10:
            raise ConfigError(f"cover_ratio: must be in 0..10, got {self.cover_ratio}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size: must be at least 1 pixel, got {self.size}")
        if self.margin is not None and self.margin < 0:
            raise ConfigError(f"margin: must be at least 0 pixels, got {self.margin}")
        if not 0 < self.alpha <= 1:
            raise ConfigError(f"alpha: must be above 0 and at most 1, got {self.alpha}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check the classes, and that the patch fits the images."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        last = clean.num_classes - 1
        for name, values in (("source", (self._source,)), ("cover_classes", self.cover_classes or ())):
            for value in values:
                if not 0 <= value <= last:
                    raise PoisonError(f"attack.{name}: {value} is not a class; the set has 0..{last}")
        _, height, width = clean.shape
        side, margin = self._place(clean.shape)
        if side + margin > min(height, width):
            raise PoisonError(
                f"a patch of {side} pixels with a margin of {margin} is larger than the pictures ({height}x{width})"
            )
        self._overlay(clean.shape)
        return ready

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the patch on every image."""
        _, channels, height, width = images.shape
        return lay(images, self._overlay((int(channels), int(height), int(width))))

    def candidates(self, labels: Tensor) -> Tensor:
        """Return the images of the source class."""
        return labels == self._source

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return the images of the cover classes."""
        if self.cover_classes is not None:
            return torch.isin(labels, torch.tensor(self.cover_classes, device=labels.device))
        aimed = self.target_of(torch.full_like(labels, self._source))
        return (labels != self._source) & (labels != aimed)

    def cover_count(self, count: int) -> int:
        """Return the covers for ``count`` poisoned images, rounded half up."""
        return math.floor(self.cover_ratio * count + 0.5)

    def test_candidates(self, labels: Tensor) -> Tensor:
        """Return the images of the source class."""
        return self.candidates(labels)

    @property
    def _source(self) -> int:
        if self.source is not None:
            return self.source
        return 1 if self.target == 0 else 0

    def _place(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        side = self.size or max(2, scaled(8, shape))
        return side, scaled(3, shape) if self.margin is None else self.margin

    def _overlay(self, shape: tuple[int, int, int]) -> Overlay:
        side, margin = self._place(shape)
        if self.pattern == "noise":
            cells = colour_cells(shape[0], 8, torch.Generator().manual_seed(self.pattern_seed))
            pixels = enlarge(cells, side)
        else:
            pixels = read_picture(Path(self.pattern), (shape[0], side, side), setting="attack.pattern")
        return overlay_of(pixels, torch.full((1, side, side), self.alpha), shape, ("bottom-right",), margin)
