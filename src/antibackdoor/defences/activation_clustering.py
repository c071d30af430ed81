"""Activation clustering as a filter: remove the small clusters in the features of the classes, and train anew."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.defences.base import RatedDefence
from antibackdoor.defences.retrain import train_and_score
from antibackdoor.errors import ConfigError
from antibackdoor.isolation import ActivationClusters, flag_share
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, TrainPlan
from antibackdoor.types import ImageSet, Isolation, Outcome

__all__ = ["ActivationClustering"]


@dataclass(frozen=True)
class ActivationClustering(RatedDefence):
    """Remove the images of small, clear-cut clusters in the features of the classes, given the rate, and train anew.

    A network is trained by the plan; the features of each class are cut in two clusters, and images are scored by the
    signal ``activation-clusters``: their place between the two, times the silhouette of the cut. Flagged are images
    nearer to the smaller cluster, in classes where it is under ``largest``, the clearest cuts first, and of these no
    more than ``factor * rate * N``. A new network is trained by the same plan on the rest.

    Differences from the paper: there a person, or a threshold on size or silhouette, decides about each class; here the
    size decides, and the rate says how much may be removed in all, so that the cuts of clean classes, which 2-means
    always makes, are not removed too. Poison that is the larger part of its class, as 10 % of a set with ten classes
    makes it, cannot be found by any rule that takes the smaller cluster.

    Attributes:
        factor: Images that may be removed for each image of poison, over the whole set.
        largest: Share of a class below which its smaller cluster may be poison, above 0 and at most 0.5.
        components: Principal components that the clustering sees, at least 1.

    Source:
        Chen et al., Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering, 2018; 0.35 and 10
        components are those of public versions, which reduce by ICA or by singular value decomposition.
    """

    factor: float = 1.5
    largest: float = 0.35
    components: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise ConfigError(f"factor: must be a finite number above 0, got {self.factor}")
        self._signal()

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, score and flag."""
        rate = self._told()
        model, history, scores = train_and_score(
            self._signal(), data, build_model=build_model, fit=fit, plan=plan, seeds=seeds
        )
        flagged = self.flag(scores, rate)
        counts = torch.bincount(data.labels[flagged], minlength=data.num_classes)
        sentence = (
            f"{int(flagged.sum())} of {len(flagged)} images are flagged, in {int((counts > 0).sum())} classes: those "
            f"of smaller clusters, at most {self.factor:g} times the number of poison images that a rate of "
            f"{100 * rate:.3g} % makes. Clean classes fall into clusters too, so this says which images to look at "
            "first, not whether there is poison."
        )
        return Outcome(model, Isolation(scores, flagged, "undecided", (sentence,)), (history,))

    def flag(self, scores: Tensor, rate: float) -> Tensor:
        """Flag the highest scores above 0, as many as the rate allows.

        Args:
            scores: float (N,), of the signal ``activation-clusters``: above 0 nearer to a small cluster.
            rate: Share of all images that is poison.

        Returns:
            bool (N,).
        """
        return flag_share(scores, min(1.0, self.factor * rate)) & (scores > 0)

    def _signal(self) -> ActivationClusters:
        return ActivationClusters(components=self.components, largest=self.largest)
