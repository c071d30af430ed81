"""CL: images of the target class made hard to learn, then patched (Turner et al., Label-Consistent Backdoor, 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from antibackdoor.attacks.base import CleanLabelAttack
from antibackdoor.attacks.optimise import check_positive, check_shape, rows_of
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.objectives import ce
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.ops.triggers import grid_pattern
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["LabelConsistent"]

_BATCH = 256


@dataclass(frozen=True)
class LabelConsistent(CleanLabelAttack):
    """Adversarial noise against a surrogate on target-class images, then a patch in all four corners.

    Without the noise the class is easy to learn from its own features and the patch is learned late. Test images get
    the patches alone.

    Attributes:
        eps: Bound of the noise (l-infinity), in steps of 255, above 0 and at most 127; the noise is rounded to whole
            steps, towards zero.
        step_size: Of projected gradient ascent, in steps of 255, above 0.
        steps: Of projected gradient ascent, at least 1.
        size: Side of a patch in pixels; 3 for every 32 of the shorter side of the images if None.
        amplitude: What a patch adds or takes in training images, in steps of 255, above 0; 255 overwrites.
        test_amplitude: The same in test images.
        surrogate_epochs: Passes over the clean data to train the surrogate, at least 1.
        cover_ratio: Covers for every poisoned image, 0..10: images of other classes that carry the noise of a poisoned
            image without the patches and keep their label, so that the noise alone does not mean the target.
        robust: Bound (l-infinity, in steps of 255) of the surrogate's adversarial training, at least 0; 0 for ordinary
            training.
        rows: int64 (M,), ascending: the rows that have noise, those of the target class; made by :meth:`prepare`.
        noise: int8 (M, C, H, W), their noise in steps of 255; made by :meth:`prepare`.

    Source:
        Turner et al., 2019: untargeted projected gradient ascent, and the 3x3 patch of the released code; there are no
        covers there. The paper's surrogate is adversarially trained (``robust``); ours is not by default, and makes up
        for it by eps 16 where later users take 8 (BackdoorBench). Each corner here mirrors the others, so that a
        flipped image carries the same trigger; the released patches are not all mirror images. A random crop leaves at
        least one corner whole.
    """

    weak_up_to: ClassVar[int] = 6_000

    eps: float = 16.0
    step_size: float = 2.0
    steps: int = 30
    size: int | None = None
    amplitude: float = 255.0
    test_amplitude: float = 255.0
    surrogate_epochs: int = 10
    robust: float = 0.0
    cover_ratio: float = 0.0
    rows: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    noise: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            amplitude=self.amplitude,
            test_amplitude=self.test_amplitude,
            surrogate_epochs=self.surrogate_epochs,
        )
        if self.eps > 127:
            raise ConfigError(f"eps: must be at most 127 steps of 255, got {self.eps}")
        if not 0 <= self.robust <= 127:
            raise ConfigError(f"robust: must be in 0..127 steps of 255, got {self.robust}")
        if not 0 <= self.cover_ratio <= 10:
            raise ConfigError(f"cover_ratio: must be in 0..10, got {self.cover_ratio}")
        if self.size is not None and self.size < 1:
            raise ConfigError(f"size: must be at least 1 pixel, got {self.size}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the surrogate and make the noise of every target-class image, or take the noise from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        _, height, width = clean.shape
        side = self._side(height, width)
        if 2 * side > min(height, width):
            raise PoisonError(
                f"four patches of {side} pixels do not fit beside one another in the pictures ({height}x{width})"
            )
        rows = rows_of(clean.labels == self.target, "the target class")

        def make() -> dict[str, Tensor]:
            model = train_surrogate(
                clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs, robust=self.robust
            )
            generator = seeds.generator("cl")
            parts = [self.harden(model, clean.images[part], generator=generator) for part in rows.split(_BATCH)]
            return {"rows": rows, "noise": torch.cat(parts)}

        params = {
            "target": self.target,
            "eps": self.eps,
            "step_size": self.step_size,
            "steps": self.steps,
            "surrogate_epochs": self.surrogate_epochs,
            "robust": self.robust,
            "model": architecture_of(build_model),
        }
        made = cached(artefact_key("cl", clean, params, seeds), make)
        return ready._ready(rows=made["rows"], noise=made["noise"])

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add each image's noise, then the patches; rows outside the target class have no noise and get patches."""
        if self.rows is None or self.noise is None:
            raise PoisonError("cl: the attack must be prepared before use")
        check_shape(images, tuple(self.noise.shape[1:]))
        place = torch.searchsorted(self.rows, index.cpu().contiguous()).clamp(max=len(self.rows) - 1)
        known = (self.rows[place] == index.cpu())[:, None, None, None]
        noise = (self.noise[place] * known).to(images).div(255)
        return self._patched((images + noise).clamp(0, 1), self.amplitude)

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add the noise of a target-class image to each image, and no patch; which one is a function of the row."""
        if self.noise is None:
            raise PoisonError("cl: the attack must be prepared before use")
        check_shape(images, tuple(self.noise.shape[1:]))
        lent = uniform_of(index.cpu(), 0, "cl cover").mul(len(self.noise)).long().clamp_(max=len(self.noise) - 1)
        return (images + self.noise[lent].to(images).div(255)).clamp(0, 1)

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return the images of other classes."""
        return labels != self.target

    def cover_count(self, count: int) -> int:
        """Return the covers for ``count`` poisoned images, rounded half up."""
        return math.floor(self.cover_ratio * count + 0.5)

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the patches on every image, without noise."""
        return self._patched(images, self.test_amplitude)

    def harden(self, model: nn.Module, pixels: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the noise that makes target-class images hard to learn, by projected gradient ascent on their loss.

        Args:
            model: The surrogate.
            pixels: uint8 (B, C, H, W).
            generator: Of the starts.

        Returns:
            int8 (B, C, H, W), in steps of 255.
        """
        bound, step = self.eps / 255, self.step_size / 255
        start = (torch.rand(pixels.shape, generator=generator) * 2 - 1) * bound
        images = pixels.to(device_of(model)).float().div(255)
        labels = torch.full((len(images),), self.target, device=images.device)
        hard = (images + start.to(images)).clamp(0, 1)
        for _ in range(self.steps):
            hard.requires_grad_(True)
            (slope,) = torch.autograd.grad(ce(model(hard), labels).sum(), [hard])
            moved = hard.detach() + step * slope.sign()
            hard = (images + (moved - images).clamp(-bound, bound)).clamp(0, 1)
        # Towards zero, so that a bound between two steps holds; the small sum undoes errors of the division by 255.
        steps = (hard - images) * 255
        return (steps + steps.sign() * 1e-3).trunc().to(torch.int8).cpu()

    def _side(self, height: int, width: int) -> int:
        return self.size or max(2, round(3 * min(height, width) / 32))

    def _patched(self, images: Tensor, amplitude: float) -> Tensor:
        _, _, height, width = images.shape
        side = self._side(int(height), int(width))
        corner = grid_pattern(side).to(images) * 2 - 1
        change = torch.zeros((1, int(height), int(width)), dtype=images.dtype, device=images.device)
        change[:, -side:, -side:] = corner
        change[:, -side:, :side] = corner.flip(2)
        change[:, :side, -side:] = corner.flip(1)
        change[:, :side, :side] = corner.flip(1, 2)
        return (images + amplitude / 255 * change).clamp(0, 1)
