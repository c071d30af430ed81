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

    A poisoned image is an image of either class mixed with a partner of the other. Covers are mixes of two images of
    one class, of any class, under their own label: without them the network learns that a seam means the target.
    Test images are mixed with partners of the test set.

    Attributes:
        first: One class of the pair, 0..K-1; the class after the target if None.
        second: The other class; the next one after ``first`` that is not the target if None.
        mixer: "half" puts strips of both images side by side; "crop-paste" pastes one, made smaller, onto the other.
        scale: Side of the pasted image as a share of the image's, above 0 and below 1; "crop-paste" only.
        covers: Covers for each poisoned image, 0..100.
        append: Add the mixes to the set; False puts each in the place of the image that it was made of.
        mix_seed: Decides partners, seams and places.
        pool: Where partners come from; filled in by :meth:`prepare`.
        test_pool: Where partners of test images come from; filled in by :meth:`for_test`.

    Source:
        Lin et al., CCS 2020 (HalfMixer, CropPasteMixer), and its released code, which adds mixes to the data: 0.1 N of
        the pair and 0.5 N within a class, ``covers=5`` here. Theirs controls training, mixes anew in every epoch and
        adds a contrastive loss on the logits; ours hands over a fixed set, so it drops the loss.
    """

    several_targets: ClassVar[bool] = False

    first: int | None = None
    second: int | None = None
    mixer: Literal["crop-paste", "half"] = "half"
    scale: float = 0.6
    covers: float = 2.0
    append: bool = True
    mix_seed: int = 0
    pool: _Pool | None = field(default=None, init=False, repr=False, compare=False)
    test_pool: _Pool | None = field(default=None, init=False, repr=False, compare=False)

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
        pool = _Pool(clean, "clean set")
        for label in (first, second):
            if pool.counts[label] == 0:
                raise PoisonError(f"a composite of classes {first} and {second} needs images of both; {label} has none")
        return dataclasses.replace(ready, first=first, second=second)._ready(pool=pool)

    @property
    def appends(self) -> bool:
        """Whether mixes are added to the set, as ``append`` says."""
        return self.append

    def for_test(self, test: ImageSet) -> Self:
        """Return the attack with partners for test images that are test images themselves."""
        return self._ready(test_pool=_Pool(test, "test set"))

    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix each image with one of the other class of the pair (of the first class where it is of neither)."""
        return self._mix(images, index, self._other(labels), "train")

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix each image with one of its own class."""
        return self._mix(images, index, labels, "cover")

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Mix each image with one of the other class: of the test set after :meth:`for_test`, else of the clean set."""
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
        pool = self.test_pool if phase == "test" and self.test_pool is not None else self.pool
        if pool is None:
            raise PoisonError("a composite attack must be prepared before use, since partners come from the clean set")
        return pool.draw(wanted, draws)


class _Pool:
    """Images by class, for partners to be drawn from."""

    def __init__(self, data: ImageSet, name: str) -> None:
        self._data, self._name = data, name
        self._rows = data.labels.sort(stable=True).indices
        self.counts = torch.bincount(data.labels, minlength=data.num_classes)

    def draw(self, wanted: Tensor, draws: Tensor) -> Tensor:
        """Return one image of each wanted class, float (M, C, H, W), by a uniform number of [0, 1) for each."""
        counts = self.counts[wanted]
        if bool((counts == 0).any()):
            raise PoisonError(f"class {int(wanted[counts == 0][0])} has no image in the {self._name} to mix with")
        starts = self.counts.cumsum(0)[wanted] - counts
        return self._data.images[self._rows[starts + _below(draws, counts)]].float().div(255)


def _below(draws: Tensor, high: Tensor | int) -> Tensor:
    """Turn uniform numbers in [0, 1) into integers 0..high-1."""
    return (draws.double() * high).long()  # In double, so that no product rounds up to ``high``.
