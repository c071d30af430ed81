"""What an attack is, and how a set is poisoned with one.

To add an attack, write one file with a frozen dataclass that derives from :class:`Attack` and give it a line in the
table of ``attacks/__init__.py``; ``tests/contracts/test_attacks.py`` then tests it by name.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from antibackdoor.attacks.appending import with_copies
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.registry import NO_PARAMETER
from antibackdoor.types import ImageSet, PoisonedSet

if TYPE_CHECKING:
    from antibackdoor.models import BuildModel
    from antibackdoor.seeds import Seeds
    from antibackdoor.training import Fit

__all__ = ["Attack", "CleanLabelAttack", "DirtyLabelAttack", "RateOf", "poison", "triggered_test"]

RateOf = Literal["class", "dataset"]
_CHUNK = 1024


@dataclass(frozen=True)
class Attack(ABC):
    """Hyper-parameters in the constructor, data in the calls.

    Attributes:
        target: The class that triggered images shall be given, 0..K-1.
        num_classes: K; filled in by :meth:`prepare`.
        rate: Share of the images that ``antibackdoor.train(..., attack=...)`` poisons, 0..1; None for its default.
            It decides nothing else, and is no hyper-parameter of the method: ``attack.rate`` of a configuration and
            ``poison(..., rate=...)`` stand on their own.

    ``weak_up_to`` of the class is the number of training images up to which it was measured that an undefended network
    does not learn the attack by its default settings; 0 where it does, or where nobody measured.
    """

    weak_up_to: ClassVar[int] = 0

    target: int = 0
    num_classes: int | None = None
    rate: float | None = dataclasses.field(default=None, kw_only=True, metadata=NO_PARAMETER)

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ConfigError(f"rate: must be in 0..1, got {self.rate}")
        if self.target < 0:
            raise ConfigError(f"target: must be a class index of at least 0, got {self.target}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Return an attack that is ready for this set; optimised attacks train their surrogate here.

        Args:
            clean: The clean training data.
            build_model: Builds a fresh network for a surrogate.
            fit: Trains it.
            seeds: The attack's own streams.

        Raises:
            PoisonError: The target is not a class, or the trigger does not fit the images.
        """
        if self.target >= clean.num_classes:
            shown = ", ".join(clean.classes[:12]) + (", ..." if clean.num_classes > 12 else "")
            raise PoisonError(
                f"attack target {self.target} is not a class: the set has {clean.num_classes} "
                f"(0..{clean.num_classes - 1}: {shown})"
            )
        return dataclasses.replace(self, num_classes=clean.num_classes)

    def _ready(self, **state: object) -> Self:
        """Return a copy that holds what was prepared, in fields declared with ``init=False``."""
        ready = copy.copy(self)
        for name, value in state.items():
            object.__setattr__(ready, name, value)
        return ready

    @abstractmethod
    def stamp(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Return training images with the trigger.

        Args:
            images: float (N, C, H, W) in [0, 1].
            index: int64 (N,), their rows in the set, for triggers that differ from image to image.
            labels: int64 (N,), their original labels.

        Returns:
            float (N, C, H, W) in [0, 1].
        """

    def stamp_cover(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Return cover images: they carry the trigger and keep their true label; the training trigger by default."""
        return self.stamp(images, index, labels)

    def stamp_test(self, images: Tensor, index: Tensor, labels: Tensor) -> Tensor:
        """Return test images with the trigger; the training trigger unless an attack says otherwise."""
        return self.stamp(images, index, labels)

    @abstractmethod
    def target_of(self, labels: Tensor) -> Tensor:
        """Return the label that an image of each class is to be predicted as, int64 (N,) -> (N,)."""

    @abstractmethod
    def relabel(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return the labels that poisoned training images carry.

        Args:
            labels: int64 (N,), their original labels.
            index: int64 (N,), their rows in the set.
        """

    @abstractmethod
    def candidates(self, labels: Tensor) -> Tensor:
        """Return which images may be poisoned, int64 (N,) -> bool (N,)."""

    def select(self, allowed: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Return ``count`` of the rows ``allowed`` (int64 (M,)) to poison; drawn at random, by default."""
        return allowed[torch.randperm(len(allowed), generator=generator)[:count]]

    def cover_candidates(self, labels: Tensor) -> Tensor:
        """Return which images may become covers, int64 (N,) -> bool (N,); none unless an attack has covers."""
        return torch.zeros_like(labels, dtype=torch.bool)

    def cover_count(self, count: int) -> int:
        """Return how many covers go with ``count`` poisoned images."""
        return 0

    @property
    def appends(self) -> bool:
        """Whether poison and covers are added behind the clean set, and replace no image; they replace by default."""
        return False

    def for_test(self, test: ImageSet) -> Self:
        """Return the attack as it triggers the images of this test set; itself, unless triggers are made of others."""
        return self

    def test_labels(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return what each test image is to be predicted as; what :meth:`target_of` says unless its row matters.

        Args:
            labels: int64 (N,), their original labels.
            index: int64 (N,), their rows in the test set.
        """
        return self.target_of(labels)

    def test_candidates(self, labels: Tensor) -> Tensor:
        """Return which test images the attack aims at, int64 (N,) -> bool (N,); all whose class it would change."""
        return self.target_of(labels) != labels

    @property
    def single_target(self) -> int | None:
        """The one target class, or None where there are several."""
        return self.target


@dataclass(frozen=True)
class DirtyLabelAttack(Attack):
    """Poisoned images of other classes that carry the target's label.

    Attributes:
        labelling: "all-to-one" gives every poisoned image the target's label, "all-to-all" the next class's.
        targets: Several targets for one trigger, two at least, in place of ``target``: class y is given the one at
            ``y mod`` their number, or the next of them where that is y itself. None for one target.
    """

    several_targets: ClassVar[bool] = True

    labelling: Literal["all-to-one", "all-to-all"] = "all-to-one"
    targets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is None:
            return
        if not self.several_targets:
            raise ConfigError("targets: the trigger of this attack is made for one target; use compose for several")
        if self.labelling != "all-to-one":
            raise ConfigError(f"targets: must be null with {self.labelling}")
        if len(set(self.targets)) != len(self.targets) or len(self.targets) < 2 or min(self.targets) < 0:
            raise ConfigError(f"targets: must be two unlike class indices of at least 0 or more, got {self.targets}")

    def prepare(self, clean: ImageSet, *, build_model: BuildModel, fit: Fit, seeds: Seeds) -> Self:
        """Check that every target is a class."""
        ready = super().prepare(clean, build_model=build_model, fit=fit, seeds=seeds)
        if self.targets is not None and max(self.targets) >= clean.num_classes:
            raise PoisonError(
                f"attack.targets: {max(self.targets)} is not a class; the set has 0..{clean.num_classes - 1}"
            )
        return ready

    def target_of(self, labels: Tensor) -> Tensor:
        """Return the target for each label: one class, one of several, or ``(y + 1) mod K``."""
        if self.targets is not None:
            targets = torch.tensor(self.targets, device=labels.device)
            own = targets[labels % len(targets)]
            return torch.where(own == labels, targets[(labels + 1) % len(targets)], own)
        if self.labelling == "all-to-one":
            return torch.full_like(labels, self.target)
        if self.num_classes is None:
            raise PoisonError("an all-to-all attack must be prepared before use, since it needs the number of classes")
        return (labels + 1) % self.num_classes

    def relabel(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return the target of each label."""
        return self.target_of(labels)

    def candidates(self, labels: Tensor) -> Tensor:
        """Return every image whose label poisoning would change."""
        return self.target_of(labels) != labels

    @property
    def single_target(self) -> int | None:
        """The target, or None for all-to-all and for several."""
        return self.target if self.labelling == "all-to-one" and self.targets is None else None


@dataclass(frozen=True)
class CleanLabelAttack(Attack):
    """Poisoned images of the target class that keep their label."""

    def target_of(self, labels: Tensor) -> Tensor:
        """Return the target for every label."""
        return torch.full_like(labels, self.target)

    def relabel(self, labels: Tensor, index: Tensor) -> Tensor:
        """Return the labels as they are."""
        return labels.clone()

    def candidates(self, labels: Tensor) -> Tensor:
        """Return the images of the target class."""
        return labels == self.target


def poison(
    clean: ImageSet, attack: Attack, *, rate: float, generator: torch.Generator, rate_of: RateOf = "dataset"
) -> PoisonedSet:
    """Poison a share of a training set.

    Args:
        clean: The set; not changed.
        attack: A prepared attack.
        rate: Share to poison, 0..1; ``rate * N`` is rounded half up. 0 poisons nothing.
        generator: Decides which images.
        rate_of: "dataset" counts the share of all N images, "class" that of the images the attack may poison.

    Returns:
        The observed set, in the order of ``clean``, and the truth. Poisoned pixels are rounded to uint8. Where the
        attack adds images, they come behind those of ``clean``, poison first; the rate is still one of ``clean``.

    Raises:
        PoisonError: The rate is outside 0..1, is above 0 but asks for no image, or asks for more than the attack may
            poison.
    """
    if not 0 <= rate <= 1:
        raise PoisonError(f"poison rate {rate} is outside 0..1")
    allowed = attack.candidates(clean.labels).nonzero().squeeze(1)
    base = len(clean) if rate_of == "dataset" else len(allowed)
    count = int(rate * base + 0.5)
    if rate > 0 and count == 0:
        one = f"one image is a rate of {1 / base:.4g}" if base else "none of them may carry this attack"
        raise PoisonError(f"a rate of {rate} asks for none of {base} images; {one}, and 0 poisons none")
    if count > len(allowed):
        raise PoisonError(
            f"a rate of {rate} asks for {count} poisoned images, but only {len(allowed)} of the {len(clean)} may carry "
            f"this attack; the highest rate is {len(allowed) / base:.4f}"
        )
    chosen = attack.select(allowed, count, generator).sort().values
    covers = _choose_covers(clean.labels, attack, chosen, generator)
    added, origin = clean, None
    if attack.appends:
        origin = torch.cat([torch.arange(len(clean)), chosen, covers])
        added = with_copies(clean, origin)
    places = (chosen, covers) if origin is None else torch.arange(len(clean), len(added)).split([count, len(covers)])
    images, labels = added.images.clone(), added.labels.clone()
    for rows, at, stamp in zip((chosen, covers), places, (attack.stamp, attack.stamp_cover), strict=True):
        for part, there in zip(_parts(rows), _parts(at), strict=True):
            images[there] = _to_uint8(stamp(_to_float(clean.images[part]), part, clean.labels[part]))
    labels[places[0]] = attack.relabel(clean.labels[chosen], chosen)
    observed = dataclasses.replace(added, images=images, labels=labels)
    poisoned, covered = (_mask(rows, len(observed)) for rows in places)
    return PoisonedSet(observed, poisoned, covered, added.labels.clone(), attack.single_target, origin)


def _choose_covers(labels: Tensor, attack: Attack, chosen: Tensor, generator: torch.Generator) -> Tensor:
    allowed = attack.cover_candidates(labels)
    if not attack.appends:
        allowed[chosen] = False
    rows = allowed.nonzero().squeeze(1)
    count = attack.cover_count(len(chosen))
    if count > len(rows):
        raise PoisonError(
            f"{len(chosen)} poisoned images ask for {count} cover images, but only {len(rows)} may be covers; "
            "lower the rate or the share of covers"
        )
    return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values


def _mask(rows: Tensor, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[rows] = True
    return mask


def triggered_test(clean: ImageSet, attack: Attack) -> PoisonedSet:
    """Put the trigger on every test image that the attack aims at: none is of the class it is to be given.

    Args:
        clean: The clean test set; not changed.
        attack: A prepared attack.

    Returns:
        Observed labels are what the attacker wants; all rows are poison. For all-to-all these are all images.
    """
    attack = attack.for_test(clean)
    rows = attack.test_candidates(clean.labels).nonzero().squeeze(1)
    kept = clean.select(rows)
    images = torch.empty_like(kept.images)
    for part in _parts(torch.arange(len(kept))):
        images[part] = _to_uint8(attack.stamp_test(_to_float(kept.images[part]), rows[part], kept.labels[part]))
    observed = dataclasses.replace(kept, images=images, labels=attack.test_labels(kept.labels, rows))
    everything = torch.ones(len(kept), dtype=torch.bool)
    return PoisonedSet(observed, everything, ~everything, kept.labels, attack.single_target)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    # The split of no rows is one part without any, which some networks cannot take.
    return rows.split(_CHUNK) if len(rows) else ()


def _to_float(images: Tensor) -> Tensor:
    return images.float().div(255)


def _to_uint8(images: Tensor) -> Tensor:
    # Round, then clip, then cast: a cast before the clip wraps bright pixels to dark ones.
    return images.mul(255).round().clamp(0, 255).to(torch.uint8)
