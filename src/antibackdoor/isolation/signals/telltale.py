"""Late losses of all images, clustered together: the largest cluster is clean, and what is outside it is suspect."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.signals.base import Signal

__all__ = ["TellTale"]

_FLOOR = 1e-6


@dataclass(frozen=True)
class TellTale(Signal):
    """The distance of an image's late log-losses from the largest cluster of all; outsiders come before members.

    Needs no forward passes; the clustering takes time with the square of the number of images, a few seconds on a CPU
    for 20,000. Clean images that are never learned are outsiders too. Held-out images belong to no cluster and score by
    distance alone.

    Attributes:
        part: Share of the epochs, the last ones, that is looked at; above 0 and at most 1.
        components: Principal components that the clustering sees.
        smallest: The smallest cluster, as a share of all images, above 0; at least 5 images.

    Source:
        TellTale (NDSS 2025), and from its released script the last quarter of the epochs, clusters over all classes at
        once and the largest for clean. The script standardises the rows known to be clean and those known to be
        poisoned apart from one another, which gives the answer away; here all are standardised together. Ours as well:
        logarithms of the losses; principal components in the place of an LSTM autoencoder, its spectrum and t-SNE;
        HDBSCAN for DBSCAN; a score (Mahalanobis distance from the clean cluster) where the script has only a cut.
    """

    part: float = 0.25
    components: int = 4
    smallest: float = 0.002

    def __post_init__(self) -> None:
        if not 0 < self.part <= 1:
            raise ConfigError(f"part: must be above 0 and at most 1, got {self.part}")
        if self.components < 1:
            raise ConfigError(f"components: must be at least 1, got {self.components}")
        if not 0 < self.smallest < 1:
            raise ConfigError(f"smallest: must be in 0..1, got {self.smallest}")

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the distance d in standard deviations: d / (1 + d) of members, one more of outsiders."""
        count = math.ceil(self.part * len(evidence.losses))
        logs = evidence.losses[-count:].clamp_min(_FLOOR).log().double().T.numpy()
        fitted = evidence.trained.numpy()
        size = max(5, math.ceil(self.smallest * int(fitted.sum())))
        if fitted.sum() < 2 * size or logs[fitted].std(0).max() < _FLOOR:
            return torch.zeros(len(logs))
        standard = (logs - logs[fitted].mean(0)) / (logs[fitted].std(0) + _FLOOR)
        return torch.from_numpy(self._outside(standard, fitted, size)).float()

    def _outside(self, standard: NDArray[np.float64], fitted: NDArray[np.bool_], size: int) -> NDArray[np.float64]:
        """Return the scores (N,)."""
        from sklearn.cluster import HDBSCAN
        from sklearn.decomposition import PCA

        axes = PCA(min(self.components, standard.shape[1]), svd_solver="full").fit(standard[fitted])
        points = axes.transform(standard)
        clusters = HDBSCAN(min_cluster_size=size, min_samples=5, allow_single_cluster=True, copy=True)
        labels = clusters.fit_predict(points[fitted])
        # Where nothing clusters, all images are the bulk.
        largest = np.bincount(labels[labels >= 0]).argmax() if (labels >= 0).any() else -1
        members = np.flatnonzero(fitted)[labels == largest]
        away = points - points[members].mean(0)
        covariance = away[members].T @ away[members] / len(members)
        covariance += 1e-3 * (np.trace(covariance) / len(covariance) + _FLOOR) * np.eye(len(covariance))
        distance = np.sqrt((away @ np.linalg.inv(covariance) * away).sum(1))
        outside = np.zeros(len(points))
        outside[fitted] = labels != largest
        return np.asarray(distance / (1 + distance) + outside)
