"""What a defence is.

To add a defence, write one file with a frozen dataclass that derives from :class:`Defence` and give it a line in the
table of ``defences/__init__.py``; ``tests/contracts/test_defences.py`` then tests it by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import ImageSet, Outcome

__all__ = ["Defence"]


@dataclass(frozen=True)
class Defence(ABC):
    """Hyper-parameters in the constructor, data in the calls. It sees observed images and labels, never the truth."""

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
        """

    @abstractmethod
    def run(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Score, flag and train a network for use; arguments as in :meth:`scan`."""
