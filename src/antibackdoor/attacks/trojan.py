"""Trojan: a patch reverse-engineered from a clean network (Liu et al., Trojaning Attack on Neural Networks, 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

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
from antibackdoor.errors import PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.triggers import patch_at
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Trojan"]

_LOOKED_AT = 1024  # clean images whose activations set the goal


@dataclass(frozen=True)
class Trojan(DirtyLabelAttack):
    """A patch at the lower right that drives chosen units of a clean network far beyond what clean images reach.

    Attributes:
        size: Side of the patch in pixels; a quarter of the shorter side of the images if None.
        margin: Pixels between the patch and the edges; 3 for every 32 of the shorter side if None.
        alpha: Opacity, above 0 and at most 1.
        units: How many penultimate units are driven, at least 1.
        gain: The activation aimed at, as a multiple of the 99th percentile over clean images, above 0.
        backgrounds: Clean images under the patch in each step, at least 0; a plain grey one always joins them.
        steps: Updates of the patch, at least 1.
        lr: Adam's learning rate on the logit of a pixel.
        surrogate_epochs: Passes over the clean data to train the network, at least 1.
        pattern: float (C, size, size) in [0, 1], made by :meth:`prepare`.
        shape: C, H, W of the images it was made for, set by :meth:`prepare`.

    Source:
        Liu et al., NDSS 2018: a mask, a unit of an inner layer, and gradient descent on the input inside the mask
        until the unit reaches a value. Ours drives units of the penultimate layer of a network trained here, chosen
        by the sum of the absolute weights that leave them; it measures the goal by what clean images reach, where
        the released code fixes a number; and it optimises over clean images too, so that the patch does not depend
        on a plain background. The paper then retrains the network; here the patch poisons data, labels included.
    """

    size: int | None = None
    margin: int | None = None
    alpha: float = 1.0
    units: int = 2
    gain: float = 10.0
    backgrounds: int = 64
    steps: int = 300
    lr: float = 0.1
    surrogate_epochs: int = 10
    pattern: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    shape: tuple[int, int, int] | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patch(self.size, self.margin, self.alpha)
        check_positive(
            units=self.units,
            gain=self.gain,
            steps=self.steps,
            lr=self.lr,
            surrogate_epochs=self.surrogate_epochs,
            backgrounds=self.backgrounds + 1,
        )

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the network and optimise the patch, or take the patch from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        top_left = self._corner(clean.shape)

        def make() -> dict[str, Tensor]:
            model = train_surrogate(clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs)
            return {"pattern": self._optimise(model, clean, top_left, seeds.generator("trojan"))}

        params = {**parameters_of(self), "model": architecture_of(build_model)}
        made = cached(artefact_key("trojan", clean, params, seeds), make)
        return ready._ready(pattern=made["pattern"], shape=clean.shape)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the patch on every image."""
        if self.pattern is None or self.shape is None:
            raise PoisonError("trojan: the attack must be prepared before use")
        check_shape(images, self.shape)
        return patch_at(images, self.pattern, *self._corner(self.shape), alpha=self.alpha)

    def _side(self, height: int, width: int) -> int:
        return self.size or max(2, round(min(height, width) / 4))

    def _corner(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        _, height, width = shape
        margin = round(3 * min(height, width) / 32) if self.margin is None else self.margin
        return patch_corner(height, width, self._side(height, width), margin)

    def _optimise(
        self, model: nn.Module, clean: ImageSet, top_left: tuple[int, int], generator: torch.Generator
    ) -> Tensor:
        channels, height, width = clean.shape
        every = rows_of(torch.ones(len(clean), dtype=torch.bool), "any class")
        with torch.no_grad():
            looked_at = draw(clean, every, min(_LOOKED_AT, len(clean)), generator, model)
            usual = torch.cat([features(model, part) for part in looked_at.split(256)])
        units = _chosen(head_of(model).weight, usual, self.units)
        # A unit is taken as alive if some image moves it; the floor keeps the goal above zero where few do.
        goal = self.gain * usual[:, units].abs().quantile(0.99, dim=0).clamp_min(1e-3)
        grey = torch.full((1, channels, height, width), 0.5, device=device_of(model))

        def distance(logits: Tensor) -> Tensor:
            under = torch.cat([grey, draw(clean, every, self.backgrounds, generator, model)])
            stamped = patch_at(under, logits.sigmoid(), *top_left, alpha=self.alpha)
            return ((features(model, stamped)[:, units] - goal) / goal).square().sum(1).mean()

        side = self._side(height, width)
        start = torch.randn((channels, side, side), generator=generator).to(device_of(model))
        return on_grid(descend(start, distance, steps=self.steps, lr=self.lr).sigmoid())


def _chosen(weight: Tensor, activations: Tensor, count: int) -> Tensor:
    """Return the units (int64) with the most weight leaving them among those that clean images move.

    Args:
        weight: float (K, D), of the last layer.
        activations: float (N, D), over clean images.
        count: How many; at most D are returned.
    """
    leaving = weight.detach().abs().sum(0)
    moved = activations.std(0, correction=0) > 0
    return torch.where(moved, leaving, -1.0).topk(min(count, len(leaving))).indices
