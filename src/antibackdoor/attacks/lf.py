"""LF: a smooth trigger of low frequencies (Zeng et al., Rethinking the Backdoor Attacks' Triggers, ICCV 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.optimise import check_positive, check_shape, descend, draw, on_grid, rows_of
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import ce
from antibackdoor.ops.smooth import smooth_pattern
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["LowFrequency"]


@dataclass(frozen=True)
class LowFrequency(DirtyLabelAttack):
    """One faint smooth pattern, added to every image.

    Attributes:
        preset: "optimised" looks for the pattern that a surrogate takes for the target, "random" draws one and needs
            no surrogate.
        amplitude: Difference between the pattern's highest and lowest value on the scale 0..1, above 0 and at most 1.
        offset: "brighten" gives values in 0..amplitude, "symmetric" in -amplitude/2..amplitude/2.
        waves: Lowest cosine waves along each side, at least 2; the constant one is left out.
        batch_size: Images of other classes in each step, at least 1.
        steps: Updates of the pattern, at least 1.
        lr: Adam's learning rate on the coefficients of the waves, which start around 1.
        surrogate_epochs: Passes over the clean data to train the surrogate, at least 1.
        pattern: float (C, H, W), what is added; made by :meth:`prepare`.

    Source:
        Zeng et al., ICCV 2021, Section 5: a universal perturbation under a low-pass filter, stretched to 0..0.2 after
        every step. The paper moves it by targeted DeepFool and filters with a Gaussian; ours descends on the
        cross-entropy to the target over the coefficients of the lowest cosine waves, so that it is smooth by
        construction at every size. The paper takes as target the class that the pattern favours; here it is given.
    """

    several_targets: ClassVar[bool] = False

    preset: Literal["optimised", "random"] = "optimised"
    amplitude: float = 0.2
    offset: Literal["brighten", "symmetric"] = "brighten"
    waves: int = 4
    batch_size: int = 128
    steps: int = 300
    lr: float = 0.05
    surrogate_epochs: int = 10
    pattern: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            amplitude=self.amplitude,
            batch_size=self.batch_size,
            steps=self.steps,
            lr=self.lr,
            surrogate_epochs=self.surrogate_epochs,
        )
        if self.amplitude > 1:
            raise ConfigError(f"amplitude: must be at most 1, got {self.amplitude}")
        if self.waves < 2:
            raise ConfigError(f"waves: must be at least 2, since the first is constant, got {self.waves}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Draw the pattern and, unless it stays random, optimise it, or take it from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        channels, height, width = clean.shape
        if self.waves > min(height, width):
            raise PoisonError(f"{self.waves} waves do not fit the pictures ({height}x{width}); lower waves")
        generator = seeds.generator("lf")
        start = torch.randn((channels, self.waves, self.waves), generator=generator)
        if self.preset == "random":
            return ready._ready(pattern=on_grid(self._pattern(start, height, width)))
        rows = rows_of(clean.labels != self.target, "classes other than the target")

        def make() -> dict[str, Tensor]:
            model = train_surrogate(clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs)
            return {"pattern": self._optimise(model, clean, rows, start, generator)}

        params = {**parameters_of(self), "model": architecture_of(build_model)}
        made = cached(artefact_key("lf", clean, params, seeds), make)
        return ready._ready(pattern=made["pattern"])

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add the pattern to every image."""
        if self.pattern is None:
            raise PoisonError("lf: the attack must be prepared before use")
        check_shape(images, tuple(self.pattern.shape))
        return (images + self.pattern.to(images)).clamp(0, 1)

    def _pattern(self, coefficients: Tensor, height: int, width: int) -> Tensor:
        lowest = 0.0 if self.offset == "brighten" else -self.amplitude / 2
        return self.amplitude * smooth_pattern(coefficients, height, width) + lowest

    def _optimise(
        self, model: nn.Module, clean: ImageSet, rows: Tensor, start: Tensor, generator: torch.Generator
    ) -> Tensor:
        _, height, width = clean.shape
        target = torch.full((self.batch_size,), self.target, device=device_of(model))

        def loss(coefficients: Tensor) -> Tensor:
            images = draw(clean, rows, self.batch_size, generator, model)
            stamped = (images + self._pattern(coefficients, height, width)).clamp(0, 1)
            return ce(model(stamped), target).mean()

        coefficients = descend(start.to(device_of(model)), loss, steps=self.steps, lr=self.lr)
        return on_grid(self._pattern(coefficients, height, width))
