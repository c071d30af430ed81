"""Narcissus: noise that points inward to the target class, on few of its images (Zeng et al., CCS 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from antibackdoor.attacks.base import CleanLabelAttack
from antibackdoor.attacks.optimise import check_positive, check_shape, descend, draw, on_grid, rows_of
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.augment import augment
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Narcissus"]


@dataclass(frozen=True)
class Narcissus(CleanLabelAttack):
    """One bounded noise for all images, which makes target-class images look even more like their class.

    Attributes:
        eps: Bound of the noise (l-infinity), in steps of 255, above 0 and at most 255.
        amplify: Factor on the noise in test images, above 0.
        batch_size: Target-class images in each step, at least 1.
        steps: Updates of the noise, at least 1.
        lr: Adam's learning rate, in steps of 255.
        surrogate_epochs: Passes over the clean data to train the surrogate, at least 1.
        pattern: float (C, H, W), the noise, within ``eps / 255`` of 0; made by :meth:`prepare`.

    Source:
        Zeng et al., CCS 2023, Section 4. The paper's surrogate learns public out-of-distribution images first and the
        target class after (its warm-up); ours learns the whole clean set at once, so this attacker knows more and
        needs no warm-up. The released code lets the noise drift beyond its bound and clips a copy; ours is projected
        after every step.
    """

    eps: float = 16.0
    amplify: float = 3.0
    batch_size: int = 128
    steps: int = 300
    lr: float = 1.0
    surrogate_epochs: int = 10
    pattern: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            eps=self.eps,
            amplify=self.amplify,
            batch_size=self.batch_size,
            steps=self.steps,
            lr=self.lr,
            surrogate_epochs=self.surrogate_epochs,
        )
        if self.eps > 255:
            raise ConfigError(f"eps: must be at most 255 steps of 255, got {self.eps}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the surrogate and optimise the noise, or take the noise from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        rows = rows_of(clean.labels == self.target, "the target class")

        def make() -> dict[str, Tensor]:
            model = train_surrogate(clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs)
            return {"pattern": self._optimise(model, clean, rows, seeds.generator("narcissus"))}

        params = {
            "target": self.target,
            "eps": self.eps,
            "batch_size": self.batch_size,
            "steps": self.steps,
            "lr": self.lr,
            "surrogate_epochs": self.surrogate_epochs,
            "model": architecture_of(build_model),
        }
        made = cached(artefact_key("narcissus", clean, params, seeds), make)
        return ready._ready(pattern=made["pattern"])

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add the noise to training images."""
        return self._added(images, 1.0)

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add the amplified noise to test images."""
        return self._added(images, self.amplify)

    def _added(self, images: Tensor, factor: float) -> Tensor:
        if self.pattern is None:
            raise PoisonError("narcissus: the attack must be prepared before use")
        check_shape(images, tuple(self.pattern.shape))
        return (images + factor * self.pattern.to(images)).clamp(0, 1)

    def _optimise(self, model: nn.Module, clean: ImageSet, rows: Tensor, generator: torch.Generator) -> Tensor:
        # A bound between two steps of 255 is rounded down, so that the noise on the grid keeps it.
        bound = max(1, int(self.eps + 1e-6)) / 255
        target = torch.full((self.batch_size,), self.target, device=device_of(model))

        def loss(noise: Tensor) -> Tensor:
            stamped = (draw(clean, rows, self.batch_size, generator, model) + noise).clamp(0, 1)
            return ce(model(augment(stamped, ("crop", "flip"), generator)), target).mean()

        start = torch.zeros(clean.shape, device=device_of(model))
        noise = descend(
            start, loss, steps=self.steps, lr=self.lr / 255, project=lambda value: value.clamp(-bound, bound)
        )
        return on_grid(noise)
