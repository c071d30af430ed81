"""Dynamic: every image its own trigger, made by a generator (Nguyen and Tran, Input-Aware, NeurIPS 2020)."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.attacks.minibatches import Minibatches, batch_size_for, descend
from antibackdoor.attacks.surrogate import architecture_of, artefact_key, cached, device_of, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.models.generators import UShape, apply_in_blocks, build_seeded, depth_for, frozen
from antibackdoor.ops.perception import per_image_distance
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Dynamic"]

_LOG = logging.getLogger(__name__)
# Weight of the mask's area against its diversity, and the share of a batch that is triggered, as in the paper.
_AREA_WEIGHT = 100.0
_SHARE = 0.1
_BATCH = 128
_MASK_LR, _PATTERN_LR, _CLASSIFIER_LR = 1e-2, 1e-2, 1e-2


class _MaskedPattern(nn.Module):
    """What to paint and where: the two generators side by side."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.pattern = UShape(channels, channels, width=width, depth=depth)
        self.mask = UShape(channels, 1, width=width, depth=depth)

    def masks(self, images: Tensor) -> Tensor:
        """Return float (N, 1, H, W): a soft step of the mask generator's output at one half."""
        masks: Tensor = torch.tanh(20 * self.mask(images) - 10) / 2 + 0.5
        return masks

    def forward(self, images: Tensor) -> Tensor:
        """Return pattern and mask, float (N, C + 1, H, W)."""
        return torch.cat([self.pattern(images), self.masks(images)], dim=1)


@dataclass(frozen=True)
class Dynamic(DirtyLabelAttack):
    """A pattern and a mask that depend on the image, from generators trained jointly with a classifier.

    An image with its own trigger is to be given the target; with another image's trigger it keeps its label. The
    covers say so to the victim: they carry the trigger of another training image under their true label.

    Attributes:
        steps: Updates of pattern generator and classifier together, at least 1. The classifier starts from a network
            trained on the clean data.
        mask_steps: Updates of the mask generator before that, at least 1.
        surrogate_epochs: Passes over the clean data that train the classifier before it meets a trigger.
        width: Channels of the generators at full resolution; the paper's are 32 wide.
        mask_density: Share of the pixels that a mask may cover free of charge, above 0 and under 1.
        diversity: Weight of the loss that wants different triggers on different images, at least 0.
        cover_share: Cover images for each poisoned image, at least 0.
        generators: What preparation trains; None before.
        donors: uint8 (N, C, H, W), the clean images, whose triggers the covers carry; None before preparation.
        donor_of: int64 (N,), which of them gives its trigger to each row, never the row itself; None before.

    Source:
        Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020: ``x + (p - x) m`` with the losses of mask
        and pattern as published. There the attacker trains the victim; here the frozen generators poison a static
        set. The schedule is hundreds of steps instead of 600 epochs, from a trained classifier, and generators are
        half as wide.
    """

    weak_up_to: ClassVar[int] = 6_000

    steps: int = 500
    mask_steps: int = 250
    surrogate_epochs: int = 10
    width: int = 16
    mask_density: float = 0.032
    diversity: float = 1.0
    cover_share: float = 1.0
    generators: nn.Module | None = field(default=None, init=False, repr=False, compare=False)
    donors: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    donor_of: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "mask_steps", "surrogate_epochs", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 < self.mask_density < 1:
            raise ConfigError(f"mask_density: must be above 0 and under 1, got {self.mask_density}")
        for name in ("diversity", "cover_share"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: must be at least 0, got {getattr(self, name)}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Train the generators on the clean data, or take them from the cache."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        if len(clean) < 2:
            raise PoisonError("the dynamic attack needs at least 2 training images: one carries another's trigger")
        channels, height, width = clean.shape
        networks = build_seeded(
            lambda: _MaskedPattern(channels, self.width, depth_for(height, width)), seeds.generator("dynamic init")
        )
        params = {key: value for key, value in parameters_of(ready).items() if key != "cover_share"}

        def make() -> dict[str, Tensor]:
            classifier = train_surrogate(
                clean, build_model=build_model, fit=fit, seeds=seeds, epochs=self.surrogate_epochs
            )
            networks.to(device_of(classifier))
            ready._train_mask(networks, clean, seeds)
            ready._train_pattern(networks, classifier.requires_grad_(True), clean, seeds)
            return dict(networks.state_dict())

        networks.load_state_dict(
            cached(artefact_key("dynamic", clean, {**params, "model": architecture_of(build_model)}, seeds), make)
        )
        # One cycle through all rows: each image is the donor of exactly one other.
        order = torch.randperm(len(clean), generator=seeds.generator("dynamic donors"))
        donor_of = torch.empty_like(order)
        donor_of[order] = order.roll(-1)
        return ready._ready(generators=frozen(networks), donors=clean.images, donor_of=donor_of)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put each image's own trigger on it."""
        return self._paint(images, images)

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Put the trigger of another training image, its donor, on each image.

        Args:
            images: float (N, C, H, W) in [0, 1], of the size of the training images.
            index: int64 (N,), rows; beyond the training set they count from its start again.
            labels: int64 (N,), not used.

        Returns:
            float (N, C, H, W) in [0, 1].
        """
        if self.donors is None or self.donor_of is None:
            raise PoisonError("the dynamic attack must be prepared before use, since its triggers are learnt")
        if images.shape[1:] != self.donors.shape[1:]:
            given, wanted = ("x".join(map(str, shape[1:])) for shape in (images.shape, self.donors.shape))
            raise PoisonError(f"the dynamic attack was prepared for images of {wanted} (CxHxW), but these are {given}")
        rows = self.donor_of[index.cpu() % len(self.donor_of)]
        return self._paint(images, self.donors[rows].to(images).div(255))

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return the images whose label their own trigger would change."""
        return self.candidates(labels)

    def cover_count(self, count: int) -> int:
        """Return ``cover_share`` for each poisoned image, rounded half up."""
        return int(self.cover_share * count + 0.5)

    def _paint(self, images: Tensor, donors: Tensor) -> Tensor:
        if self.generators is None:
            raise PoisonError("the dynamic attack must be prepared before use, since its triggers are learnt")
        made = apply_in_blocks(self.generators, donors)
        return images + (made[:, :-1] - images) * made[:, -1:]

    def _train_mask(self, networks: _MaskedPattern, clean: ImageSet, seeds: Seeds) -> None:
        """Masks of small area that differ from image to image."""
        size = batch_size_for(clean.shape, 64, least=8)
        batches = Minibatches(clean, size, device_of(networks), seeds, "dynamic mask")
        optimizer = torch.optim.Adam(networks.mask.parameters(), lr=_MASK_LR, betas=(0.5, 0.9))
        networks.train()
        for step in range(self.mask_steps):
            images, _ = batches.draw()
            images = batches.augmented(images)
            masks = networks.masks(images)
            area = F.relu(masks - self.mask_density).mean()
            # The batch is in random order, so that its neighbours are random pairs.
            apart = per_image_distance(images, images.roll(1, 0)) / (per_image_distance(masks, masks.roll(1, 0)) + 1e-7)
            descend(optimizer, _AREA_WEIGHT * area + apart.mean(), _MASK_LR, step, self.mask_steps)
        networks.eval()
        _LOG.info("dynamic: masks cover %.1f %% of the pixels", 100 * float(masks.detach().mean()))

    def _train_pattern(self, networks: _MaskedPattern, classifier: nn.Module, clean: ImageSet, seeds: Seeds) -> None:
        """Own triggers give the target, another's trigger the true label; patterns differ from image to image."""
        size = batch_size_for(clean.shape, _BATCH, least=32)
        batches = Minibatches(clean, size, device_of(classifier), seeds, "dynamic pattern")
        share = max(2, round(_SHARE * batches.size))
        optimizer = torch.optim.Adam(networks.pattern.parameters(), lr=_PATTERN_LR, betas=(0.5, 0.9))
        victim = torch.optim.SGD(classifier.parameters(), lr=_CLASSIFIER_LR, momentum=0.9, weight_decay=5e-4)
        networks.pattern.train()
        classifier.train()
        own, crossed, rest = slice(0, share), slice(share, 2 * share), slice(2 * share, None)
        for step in range(self.steps):
            images, labels = batches.draw()
            # The images after the crossed ones are their donors, themselves shown clean.
            sources = torch.cat([images[own], images[rest][:share]])
            patterns, masks = networks.pattern(sources), networks.masks(sources).detach()
            carriers = images[: 2 * share]
            painted = carriers + (patterns - carriers) * masks
            mixed = batches.augmented(torch.cat([painted, images[rest]]))
            wanted = torch.cat([self.target_of(labels[own]), labels[crossed], labels[rest]])
            mistaken = F.cross_entropy(classifier(mixed), wanted)
            distance = per_image_distance(sources[:share], sources[share:])
            apart = distance / (per_image_distance(patterns[:share], patterns[share:]) + 1e-7)
            loss = mistaken + self.diversity * apart.mean()
            victim.zero_grad(set_to_none=True)
            rate = descend(optimizer, loss, _PATTERN_LR, step, self.steps)
            victim.param_groups[0]["lr"] = rate * _CLASSIFIER_LR / _PATTERN_LR
            victim.step()
        networks.eval()
        classifier.eval()
