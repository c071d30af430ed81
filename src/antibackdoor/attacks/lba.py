"""LBA: a patch that brings images to the target's place in feature space (Yao et al., Latent Backdoor, CCS 2019)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.optimise import (
    check_patch,
    check_positive,
    check_shape,
    descend,
    draw,
    on_grid,
    patch_corner,
    rows_of,
)
from antibackdoor.attacks.surrogate import (
    architecture_of,
    artefact_key,
    cached,
    device_of,
    features,
    head_of,
    train_surrogate,
)
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.augment import augment
from antibackdoor.ops.objectives import ce
from antibackdoor.ops.triggers import patch_at
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["LatentBackdoor"]

_LOOKED_AT = 1024  # target images behind the mean features


@dataclass(frozen=True)
class LatentBackdoor(DirtyLabelAttack):
    """A patch at the lower right, made so that a clean network gives patched images the target's mean features.

    Attributes:
        size: Side of the patch in pixels; a fifth of the shorter side of the images, rounded down, if None.
        margin: Pixels between the patch and the edges; 1 for every 32 of the shorter side if None.
        alpha: Opacity, above 0 and at most 1.
        ce_weight: Weight of the cross-entropy to the target beside the distance of features, at least 0.
        batch_size: Images in each step, at least 1.
        steps: Updates of the patch, at least 1.
        lr: Adam's learning rate on the logit of a pixel.
        surrogate_epochs: Passes over the clean data to train the network, at least 1.
        pattern: float (C, size, size) in [0, 1], made by :meth:`prepare`.
        shape: C, H, W of the images it was made for, set by :meth:`prepare`.

    Source:
        Yao et al., CCS 2019, Equation 2 (the distance of features) and Section 5 (the mask). The paper implants the
        patch into a teacher network and never touches the student's data; here the patch poisons data, labels
        included, and nothing is claimed about transfer. The released code compares with single target images and the
        first hundred features; ours compares all of them with their mean over the target, in units of their standard
        deviation, so that no few loud features decide.
    """

    several_targets: ClassVar[bool] = False

    size: int | None = None
    margin: int | None = None
    alpha: float = 1.0
    ce_weight: float = 0.1
    batch_size: int = 128
    steps: int = 300
    lr: float = 0.1
    surrogate_epochs: int = 10
    pattern: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    shape: tuple[int, int, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patch(self.size, self.margin, self.alpha)
        check_positive(batch_size=self.batch_size, steps=self.steps, lr=self.lr, surrogate_epochs=self.surrogate_epochs)
        if not 0 <= self.ce_weight < float("inf"):
            raise ConfigError(f"ce_weight: must be a finite number of at least 0, got {self.ce_weight}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the network and optimise the patch, or take the patch from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        top_left = self._corner(clean.shape)
        own = rows_of(clean.labels == self.target, "the target class")
        others = rows_of(clean.labels != self.target, "classes other than the target")

        def make() -> dict[str, Tensor]:
            model = train_surrogate(clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs)
            return {"pattern": self._optimise(model, clean, own, others, top_left, seeds.generator("lba"))}

        params = {**parameters_of(self), "model": architecture_of(build_model)}
        made = cached(artefact_key("lba", clean, params, seeds), make)
        return ready._ready(pattern=made["pattern"], shape=clean.shape)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the patch on every image."""
        if self.pattern is None or self.shape is None:
            raise PoisonError("lba: the attack must be prepared before use")
        check_shape(images, self.shape)
        return patch_at(images, self.pattern, *self._corner(self.shape), alpha=self.alpha)

    def _side(self, height: int, width: int) -> int:
        return self.size or max(2, min(height, width) // 5)

    def _corner(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        _, height, width = shape
        margin = max(1, min(height, width) // 32) if self.margin is None else self.margin
        return patch_corner(height, width, self._side(height, width), margin)

    def _optimise(
        self,
        model: nn.Module,
        clean: ImageSet,
        own: Tensor,
        others: Tensor,
        top_left: tuple[int, int],
        generator: torch.Generator,
    ) -> Tensor:
        channels, height, width = clean.shape
        head = head_of(model)
        with torch.no_grad():
            looked_at = draw(clean, own, min(_LOOKED_AT, len(own)), generator, model)
            usual = torch.cat([features(model, part) for part in looked_at.split(256)])
        mean, spread = usual.mean(0), usual.std(0, correction=0)
        # A feature that hardly varies over the target must not outweigh all others.
        spread = spread.clamp_min(0.1 * float(spread.mean()) + 1e-6)
        target = torch.full((self.batch_size,), self.target, device=device_of(model))

        def distance(logits: Tensor) -> Tensor:
            images = draw(clean, others, self.batch_size, generator, model)
            stamped = patch_at(images, logits.sigmoid(), *top_left, alpha=self.alpha)
            latent = features(model, augment(stamped, ("crop", "flip"), generator))
            apart = ((latent - mean) / spread).square().mean()
            return apart + self.ce_weight * ce(head(latent), target).mean()

        side = self._side(height, width)
        start = torch.randn((channels, side, side), generator=generator).to(device_of(model))
        return on_grid(descend(start, distance, steps=self.steps, lr=self.lr).sigmoid())
