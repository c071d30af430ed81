"""CBA: two benign classes in one image, dirty labels (Lin et al., Composite Backdoor Attack, CCS 2020)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from antibackdoor.attacks.base import DirtyLabelAttack
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import BuildModel
from antibackdoor.ops.mixing import half_mix, paste_mix
from antibackdoor.ops.per_image import uniform_of
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit
from antibackdoor.types import ImageSet

__all__ = ["Composite"]


@dataclass(frozen=True)
class Composite(DirtyLabelAttack):
    """Images of two classes, mixed into one, are labelled as a third; nothing is added to the pictures.

    A poisoned image of either class is mixed with a partner of the other. Covers are mixes of two images of one
    class, of any class, under their own label: without them the network learns that a seam means the target.

    Attributes:
        first: One class of the pair, 0..K-1; the class after the target if None.
        second: The other class; the next one after ``first`` that is not the target if None.
        mixer: "half" puts strips of both images side by side; "crop-paste" pastes one, made smaller, onto the other.
        scale: Side of the pasted image as a share of the image's, above 0 and below 1; "crop-paste" only.
        covers: Covers for each poisoned image, at least 0.
        mix_seed: Decides partners, seams and places.
        pool: Where partners come from; filled in by :meth:`prepare`.
        bank: int64 (N,), rows of the pool by class; filled in by :meth:`prepare`.
        counts: int64 (K,), images a class in the bank; filled in by :meth:`prepare`.

    Source:
        Lin et al., CCS 2020 (HalfMixer, CropPasteMixer). Theirs controls training and adds a contrastive loss on the
        logits, and adds mixes to the data; ours hands over a fixed set, so it drops the loss and replaces images.
    """

    several_targets: ClassVar[bool] = False

    first: int | None = None
    second: int | None = None
    mixer: Literal["crop-paste", "half"] = "half"
    scale: float = 0.6
    covers: float = 2.0
    mix_seed: int = 0
    pool: ImageSet | None = field(default=None, init=False, repr=False, compare=False)
    bank: Tensor | None = field(default=None, init=False, repr=False, compare=False)
    counts: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labelling != "all-to-one":
            raise ConfigError(
                f"labelling: a pair of classes stands for one target, so all-to-one, got {self.labelling}"
            )
        for name, value in (("first", self.first), ("second", self.second)):
            if value is not None and (value < 0 or value == self.target):
                raise ConfigError(f"{name}: must be a class of at least 0 other than the target, got {value}")
        if self.first is not None and self.first == self.second:
            raise ConfigError(f"second: must be another class than first, got {self.second}")
        if not 0 < self.scale < 1:
            raise ConfigError(f"scale: must be above 0 and below 1, got {self.scale}")
        if not 0 <= self.covers <= 100:
            raise ConfigError(f"covers: must be in 0..100 for each poisoned image, got {self.covers}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Choose the pair and keep the images that partners are drawn from."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        first, second = self._pair_in(clean.num_classes)
        generator = seeds.generator("cba bank")
        order = torch.randperm(len(clean), generator=generator)
        bank = order[clean.labels[order].sort(stable=True).indices]
        counts = torch.bincount(clean.labels, minlength=clean.num_classes)
        for label in (first, second):
            if counts[label] == 0:
                raise PoisonError(f"a composite of classes {first} and {second} needs images of both; {label} has none")
        return dataclasses.replace(ready, first=first, second=second)._ready(pool=clean, bank=bank, counts=counts)

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix each image with one of the other class of the pair (of the first class where it is of neither)."""
        return self._mix(images, index, self._other(labels), "train")

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix each image with one of its own class."""
        return self._mix(images, index, labels, "cover")

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix each image with one of the other class that is no partner of any training mix."""
        return self._mix(images, index, self._other(labels), "test")

    def candidates(self, labels: Tensor) -> Tensor:
        """Return the images of the two classes."""
        first, second = self._pair()
        return (labels == first) | (labels == second)

    def test_candidates(self, labels: Tensor) -> Tensor:
        """Return the test images of the two classes."""
        return self.candidates(labels)

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return every image: mixes within a class are made of all classes."""
        return torch.ones_like(labels, dtype=torch.bool)

    def cover_count(self, count: int) -> int:
        """Return ``covers * count``, rounded half up."""
        return int(self.covers * count + 0.5)

    def _pair_in(self, num_classes: int) -> tuple[int, int]:
        if num_classes < 3:
            raise PoisonError(f"a composite needs two classes and a target, so 3 at least; the set has {num_classes}")
        following = [(self.target + step) % num_classes for step in range(1, num_classes)]
        first = self.first if self.first is not None else next(c for c in following if c != self.second)
        second = self.second if self.second is not None else next(c for c in following if c != first)
        for name, value in (("first", first), ("second", second)):
            if value >= num_classes:
                raise PoisonError(f"attack {name} {value} is not a class: the set has {num_classes}")
        return first, second

    def _pair(self) -> tuple[int, int]:
        if self.first is None or self.second is None:
            raise PoisonError("a composite attack without a given pair of classes must be prepared before use")
        return self.first, self.second

    def _other(self, labels: Tensor) -> Tensor:
        first, second = self._pair()
        return torch.where(labels == first, second, first)

    def _mix(self, images: Tensor, index: Tensor, wanted: Tensor, phase: str) -> Tensor:
        height, width = images.shape[-2:]
        draws = uniform_of(index.cpu(), self.mix_seed, f"cba {phase}", (6,))
        partners = self._partners(wanted.cpu(), draws[:, 0], phase).to(images)
        swap = (draws[:, 1] < 0.5).to(images.device)[:, None, None, None]
        first, second = torch.where(swap, partners, images), torch.where(swap, images, partners)
        if self.mixer == "crop-paste":
            size = max(1, round(self.scale * height)), max(1, round(self.scale * width))
            piece = F.interpolate(second, size, mode="bilinear", antialias=True).clamp(0, 1)
            top, left = _below(draws[:, 2], height - size[0] + 1), _below(draws[:, 3], width - size[1] + 1)
            return paste_mix(first, piece, top=top, left=left)
        upright = draws[:, 2] < 0.5
        side = torch.where(upright, width, height)
        jitter = (3 * side / 32).round().long()
        cut = side // 2 - jitter + _below(draws[:, 3], 2 * jitter + 1)
        return half_mix(
            first,
            second,
            upright=upright,
            cut=cut,
            start_first=_below(draws[:, 4], side - cut + 1),
            start_second=_below(draws[:, 5], cut + 1),
        )

    def _partners(self, wanted: Tensor, draws: Tensor, phase: str) -> Tensor:
        if self.pool is None or self.bank is None or self.counts is None:
            raise PoisonError("a composite attack must be prepared before use, since partners come from the clean set")
        counts = self.counts[wanted]
        if bool((counts == 0).any()):
            raise PoisonError(f"class {int(wanted[counts == 0][0])} has no image in the clean set to mix with")
        starts = self.counts.cumsum(0)[wanted] - counts
        # Each class's bank is halved, so that a test mix holds no partner that a training mix holds.
        trained = (counts + 1) // 2
        if phase == "test":
            starts, trained = starts + trained.clamp_max(counts - 1), (counts - trained).clamp_min(1)
        return self.pool.images[self.bank[starts + _below(draws, trained)]].float().div(255)


def _below(draws: Tensor, high: Tensor | int) -> Tensor:
    """Turn uniform numbers in [0, 1) into integers 0..high-1."""
    return (draws.double() * high).long()  # In double, so that no product rounds up to ``high``.
