"""What a defence is.

To add a defence, write one file with a frozen dataclass that derives from :class:`Defence` and give it a line in the
table of ``defences/__init__.py``; ``tests/contracts/test_defences.py`` then tests it by name. One that trains anew
without what its scan flags derives from :class:`FilterDefence` and writes the scan alone. One that cannot do
without trusted images derives from :class:`TrustedDefence`, or from :class:`RepairDefence` if it trains on them and
names no image; one that must be told how much poison there is from :class:`RatedDefence`: what a run hands them is in
``defences/requirements.py``, and its record says so.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from antibackdoor.defences.retrain import without_flagged
from antibackdoor.errors import ConfigError
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["Defence", "FilterDefence", "RatedDefence", "RepairDefence", "TrustedDefence"]


@dataclass(frozen=True)
class Defence(ABC):
    """Hyper-parameters in the constructor, data in the calls. It sees observed images and labels, never the truth."""

    needs_trusted: ClassVar[bool] = False
    needs_rate: ClassVar[bool] = False
    can_scan: ClassVar[bool] = True

    @abstractmethod
    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Score and flag, without training a network for use.

        Args:
            data: The training data, as observed.
            build_model: Builds a fresh network from a generator of initial weights.
            fit: The training loop; it never trains on held-out images, and records their losses.
            plan: How an undefended network of this data would be trained.
            seeds: The run's streams; a defence draws initial weights from "init".

        Returns:
            The isolation, and as model the network that was trained to find it.

        Raises:
            ConfigError: The defence names no images (``can_scan`` is False).
        """

    @abstractmethod
    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Score, flag and train a network for use; arguments as in :meth:`scan`."""


@dataclass(frozen=True)
class TrustedDefence(Defence):
    """A defence that is given images known to be clean and rightly labelled, beside the observed data.

    Others do without, so its figures are not comparable with theirs as they stand.

    Attributes:
        trusted_share: Share of the clean training images that an experiment hands over, above 0 and below 1; where
            ``data.trusted`` names images, all of those are handed over.
        trusted: The images that were handed over; see :meth:`with_trusted`.
    """

    needs_trusted: ClassVar[bool] = True

    trusted_share: float = 0.05
    trusted: ImageSet | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.trusted_share < 1:
            raise ConfigError(f"trusted_share: must be above 0 and below 1, got {self.trusted_share}")

    def with_trusted(self, images: ImageSet) -> Self:
        """Return the same defence with images that are known to be clean and rightly labelled.

        Args:
            images: Of the classes and the shape of the training data.
        """
        given = copy.copy(self)
        object.__setattr__(given, "trusted", images)  # frozen for everybody else
        return given

    def _handed_over(self) -> ImageSet:
        if self.trusted is None:
            raise ConfigError(f"defence: {type(self).__name__} needs trusted images before it runs; see with_trusted")
        return self.trusted


@dataclass(frozen=True)
class RepairDefence(TrustedDefence):
    """A defence that trains as if there were no poison and repairs the network with images known to be clean.

    It names no images, so it cannot scan. Trusted images are few, so the length of a training on them is counted in
    updates and not in epochs: an epoch of 2,500 images, the papers' 5 % of CIFAR-10, is 20 updates of 128 images; one
    of 300 images is two.

    Attributes:
        tune_updates: Updates of the fine-tuning on trusted images, at least 1, rounded up to whole epochs.
        tune_lr: Learning rate of the fine-tuning at its start; it falls to zero along a cosine.
        batch_size: Images in one update of every training on trusted images, at least 2.
    """

    can_scan: ClassVar[bool] = False

    tune_updates: int = 400
    tune_lr: float = 0.01
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"tune_updates": 1, "batch_size": 2}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if not (math.isfinite(self.tune_lr) and self.tune_lr > 0):
            raise ConfigError(f"tune_lr: must be a finite number above 0, got {self.tune_lr}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Refuse: a repair names no images.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"defence: {type(self).__name__} repairs a network and names no images, so it cannot scan")


@dataclass(frozen=True)
class FilterDefence(Defence):
    """A defence that removes what its scan flags and trains anew, unless it writes a ``run`` of its own."""

    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Scan, and train a new network by the plan without what is flagged."""
        found = self.scan(data, build_model=build_model, fit=fit, plan=plan, seeds=seeds)
        return without_flagged(found, data, build_model=build_model, fit=fit, plan=plan, seeds=seeds)


@dataclass(frozen=True)
class RatedDefence(FilterDefence):
    """A filter that must be told how much poison there is.

    Attributes:
        rate: Share of the images that is poison, at least 0 and below 1. In an experiment None stands for the true one;
            on data of your own it has to be given.
    """

    needs_rate: ClassVar[bool] = True

    rate: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 <= self.rate < 1:
            raise ConfigError(f"rate: must be at least 0 and below 1, or null, got {self.rate}")

    def with_rate(self, rate: float) -> Self:
        """Return the same defence, told that this share of the images is poison.

        Raises:
            ConfigError: The rate is out of range.
        """
        return replace(self, rate=rate)

    def _told(self) -> float:
        if self.rate is None:
            raise ConfigError(f"defence: {type(self).__name__} needs the rate of poison before it runs; see with_rate")
        return self.rate
