"""Spectral signatures as a filter: remove from every class what stands out in its features, and train anew."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.defences.base import RatedDefence
from antibackdoor.defences.retrain import train_and_score
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Spectral
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import ImageSet, Isolation, Outcome

__all__ = ["SpectralFilter"]


@dataclass(frozen=True)
class SpectralFilter(RatedDefence):
    """Remove from every class the images furthest along its top singular direction, given the rate, and train anew.

    A network is trained by the plan; inside each class images are scored by the signal ``spectral``; from each class
    the ``factor * rate * N`` highest are removed, at most a share ``most`` of it; a new network is trained by the same
    plan on the rest. Any class may be the target, so each loses as many: with K classes up to K times ``factor`` as
    much is removed as there is poison. Classes under 20 images lose none.

    Differences from the paper: ``most``, without which a rate of 10 % in ten equal classes would leave nothing of them.

    Attributes:
        factor: Images to remove from a class for each image of poison; the paper's 1.5.
        most: Largest share of a class that may be removed, above 0 and at most 0.5.

    Source:
        Tran, Li, Madry, Spectral Signatures in Backdoor Attacks, NeurIPS 2018.
    """

    factor: float = 1.5
    most: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ConfigError(f"factor: must be a finite number above 0, got {self.factor}")
        if not 0 < self.most <= 0.5:
            raise ConfigError(f"most: must be above 0 and at most 0.5, got {self.most}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, score and flag."""
        rate = self._told()
        model, history, scores = train_and_score(
            Spectral(), data, build_model=build_model, fit=fit, plan=plan, seeds=seeds
        )
        flagged = self.flag(scores, data.labels, rate)
        sentence = (
            f"{int(flagged.sum())} of {len(flagged)} images are flagged, from each class {self.factor:g} times the "
            f"number of poison images that a rate of {100 * rate:.3g} % makes, at most {100 * self.most:g} % of the "
            "class. A fixed number says which images to look at first, not whether there is poison."
        )
        return Outcome(model, Isolation(scores, flagged, "undecided", (sentence,)), (history,))

    def flag(self, scores: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Flag the highest scores of every class.

        Args:
            scores: float (N,); images of no score (0) are never flagged.
            labels: int64 (N,).
            rate: Share of all images that is poison.

        Returns:
            bool (N,).
        """
        flagged = torch.zeros(len(scores), dtype=torch.bool)
        wanted = math.ceil(self.factor * rate * len(scores) - 1e-9)
        for label in labels.unique():
            rows = (labels == label).nonzero().squeeze(1)
            count = min(wanted, int(self.most * len(rows)))
            flagged[rows[scores[rows].argsort(descending=True, stable=True)[:count]]] = True
        return flagged & (scores > 0)
