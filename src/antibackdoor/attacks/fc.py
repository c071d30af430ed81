"""FC: feature collision, clean labels (Shafahi et al., Poison Frogs, NeurIPS 2018), with many poisoned images."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from antibackdoor.attacks.base import CleanLabelAttack
from antibackdoor.attacks.optimise import check_shape
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of, features, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.patches import colour_cells, enlarge
from antibackdoor.ops.triggers import patch_at
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["FeatureCollision"]

_BATCH = 256


@dataclass(frozen=True)
class FeatureCollision(CleanLabelAttack):
    """Images of the target class that look to a network like images of another class, the source.

    Each starts as a mix of a target-class image and the source image nearest to it in features, and is then changed a
    little until its features meet those of that source image. Its label, the target, stays right for the eye.

    Attributes:
        source: The class whose images are to be given the target's label, 0..K-1; the class after the target if None.
        trigger: "patch": the source images carry a patch, in the collision and at test. "none": clean source images
            are the test, as in the paper; much weaker against training from scratch.
        watermark: Opacity of the source image in the mix, 0..1, below 1.
        epsilon: Largest change of a pixel from the mix, in steps of 255.
        steps: Gradient steps, at least 1.
        step_size: Of one step, in steps of 255.
        surrogates: Networks whose features are to collide at once, at least 1.
        surrogate_epochs: Passes over the clean data for each of them.
        share: Share of the target class that is prepared, above 0 and at most 1; no more images can be poisoned.
        patch_size: Side of the patch in pixels; a quarter of the shorter side if None.
        patch_seed: Decides the colours of the patch.
        aims: uint8 (M, C, H, W), set by :meth:`aim_at`.
        rows: int64 (P,), prepared rows, rising; filled in by :meth:`prepare`.
        changes: int16 (P, C, H, W), what is added to them in steps of 255; filled in by :meth:`prepare`.

    Source:
        Shafahi et al., NeurIPS 2018; the patch after Saha et al., Hidden Trigger Backdoor Attacks, AAAI 2020. A bound
        on the change (as in Schwarzschild et al., Just How Toxic is Data Poisoning?, ICML 2021) takes the place of
        the paper's penalty, so that the change is known beforehand; features are scaled by their norm.
    """

    weak_up_to: ClassVar[int] = 6_000

    source: int | None = None
    trigger: Literal["none", "patch"] = "patch"
    watermark: float = 0.3
    epsilon: float = 16.0
    steps: int = 100
    step_size: float = 2.0
    surrogates: int = 1
    surrogate_epochs: int = 10
    share: float = 1.0
    patch_size: int | None = None
    patch_seed: int = 0
    aims: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    rows: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    changes: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is not None and (self.source < 0 or self.source == self.target):
            raise ConfigError(f"source: must be a class of at least 0 other than the target, got {self.source}")
        if not 0 <= self.watermark < 1:
            raise ConfigError(f"watermark: must be in 0..1, below 1, got {self.watermark}")
        for name, value in (("epsilon", self.epsilon), ("step_size", self.step_size)):
            if not 0 < value <= 255:
                raise ConfigError(f"{name}: must be above 0 and at most 255, got {value}")
        for name, count in (
            ("steps", self.steps),
            ("surrogates", self.surrogates),
            ("surrogate_epochs", self.surrogate_epochs),
        ):
            if count < 1:
                raise ConfigError(f"{name}: must be at least 1, got {count}")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share: must be above 0 and at most 1, got {self.share}")
        if self.patch_size is not None and self.patch_size < 1:
            raise ConfigError(f"patch_size: must be at least 1 pixel, got {self.patch_size}")

    def aim_at(self, images: Tensor) -> Self:
        """Return an attack that collides with given images and not with those of the source class in the clean set.

        This is the paper's setting: the victims are known, and no image of them is in the training data.

        Args:
            images: uint8 (M, C, H, W), source-class images without the patch.

        Raises:
            PoisonError: These are no images.
        """
        if images.ndim != 4 or images.dtype != torch.uint8 or len(images) == 0:
            raise PoisonError(f"images to aim at must be uint8 (M, C, H, W), got {images.dtype} {tuple(images.shape)}")
        return self._ready(aims=images)

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the surrogates and make the images of the target class collide.

        Raises:
            PoisonError: Target or source is no class or has no image, or the patch does not fit.
        """
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        source = self.source if self.source is not None else (self.target + 1) % clean.num_classes
        ready = dataclasses.replace(ready, source=source)
        victims = self._victims(clean, source)
        rows = self._prepared_rows(clean.labels, seeds.generator("fc rows"))
        params = parameters_of(ready) | {"model": architecture_of(build_model), "aims": _hash(self.aims)}

        def make() -> dict[str, Tensor]:
            networks = [
                train_surrogate(
                    clean,
                    build_model=build_model,
                    fit=fit,
                    seeds=seeds,
                    epochs=self.surrogate_epochs,
                    name="surrogate" if number == 0 else f"surrogate-{number + 1}",
                )
                for number in range(self.surrogates)
            ]
            parts = [ready._collide(part, victims, networks) for part in clean.images[rows].split(_BATCH)]
            return {"changes": torch.cat(parts)}

        made = cached(artefact_key("fc", clean, params, seeds), make)
        return ready._ready(aims=self.aims, rows=rows, changes=made["changes"])

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Add to each image what makes it collide; rows that were not prepared come back as they are."""
        if self.rows is None or self.changes is None:
            raise PoisonError("a feature collision must be prepared before use")
        check_shape(images, tuple(self.changes.shape[1:]))
        place = torch.searchsorted(self.rows, index.cpu().contiguous()).clamp_max(len(self.rows) - 1)
        known = (self.rows[place] == index.cpu())[:, None, None, None]
        return (images + (self.changes[place] * known).to(images) / 255).clamp(0, 1)

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Return the images as they are, or with the patch where there is one."""
        return self._with_patch(images) if self.trigger == "patch" else images.clone()

    def test_candidates(self, labels: Tensor) -> Tensor:
        """Return the test images of the source class."""
        if self.source is None:
            raise PoisonError("a feature collision without a given source class must be prepared before use")
        return labels == self.source

    def select(self, allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` prepared rows, drawn at random.

        Raises:
            PoisonError: Fewer were prepared.
        """
        if self.rows is not None:
            allowed = allowed[torch.isin(allowed, self.rows)]
        if count > len(allowed):
            raise PoisonError(f"{count} poisoned images were asked for, but {len(allowed)} were prepared; raise share")
        return super().select(allowed, count, generator)

    def _prepared_rows(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        rows = self.candidates(labels).nonzero().squeeze(1)
        if len(rows) == 0:
            raise PoisonError(f"a feature collision needs images of the target class {self.target}; there are none")
        count = max(1, int(self.share * len(rows) + 0.5))
        return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values

    def _victims(self, clean: ImageSet, source: int) -> Tensor:
        if source >= clean.num_classes or source == self.target:
            raise PoisonError(f"attack source {source} is not another class: the set has {clean.num_classes}")
        images = self.aims if self.aims is not None else clean.images[clean.labels == source]
        if len(images) == 0:
            raise PoisonError(f"a feature collision needs images of the source class {source}; there are none")
        if tuple(images.shape[1:]) != clean.shape:
            raise PoisonError(f"images to aim at are {tuple(images.shape[1:])}, those of the set {clean.shape}")
        pixels = images.float().div(255)
        return self._with_patch(pixels) if self.trigger == "patch" else pixels

    def _with_patch(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        side = self.patch_size or max(2, round(min(height, width) / 4))
        margin = round(min(height, width) / 16)
        if side + margin > min(height, width):
            raise PoisonError(f"a patch of {side} pixels with a margin of {margin} exceeds {height}x{width} pictures")
        pattern = enlarge(colour_cells(channels, 4, torch.Generator().manual_seed(self.patch_seed)), side)
        return patch_at(images, pattern, height - side - margin, width - side - margin)

    def _collide(self, images: Tensor, victims: Tensor, networks: list[nn.Module]) -> Tensor:
        device = device_of(networks[0])
        base = images.to(device).float().div(255)
        goals, nearest = self._goals(base, victims, networks)
        start = (1 - self.watermark) * base + self.watermark * victims[nearest].to(device)
        change = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([change], lr=self.step_size / 255)
        bound = self.epsilon / 255
        for step in range(self.steps):
            optimizer.param_groups[0]["lr"] = self.step_size / 255 * (1 - step / self.steps)
            pixels = (start + change).clamp(0, 1)
            distance = torch.stack(
                [
                    (features(network, pixels) - goal).square().sum(1) / goal.square().sum(1).clamp_min(1e-6)
                    for network, goal in zip(networks, goals, strict=True)
                ]
            )
            (change.grad,) = torch.autograd.grad(distance.sum(), change)
            optimizer.step()
            with torch.no_grad():
                change.clamp_(-bound, bound)
        final = (start + change.detach()).clamp(0, 1).mul(255).round()
        return (final - base.mul(255).round()).to(torch.int16).cpu()

    def _goals(self, base: Tensor, victims: Tensor, networks: list[nn.Module]) -> tuple[list[Tensor], Tensor]:
        """Return the features to reach, one (B, D) a network, and which victim is nearest, int64 (B,) on the CPU."""
        distances, all_features = torch.zeros(len(base), len(victims), device=base.device), []
        with torch.no_grad():
            for network in networks:
                parts = [features(network, part.to(base.device)) for part in victims.split(_BATCH)]
                all_features.append(torch.cat(parts))
                own = features(network, base)
                scale = all_features[-1].norm(dim=1).mean().clamp_min(1e-6)
                distances += torch.cdist(own / scale, all_features[-1] / scale).square()
        nearest = distances.argmin(1)
        return [found[nearest] for found in all_features], nearest.cpu()


def _hash(images: Tensor | None) -> str:
    return "none" if images is None else hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
