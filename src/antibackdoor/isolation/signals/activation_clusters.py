"""Activation clustering: the features of a poisoned class fall into two clusters, of which poison is the smaller."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.base import NetworkSignal
from antibackdoor.isolation.signals.features import penultimate

__all__ = ["ActivationClusters"]

_SMALLEST_CLASS = 20


@dataclass(frozen=True)
class ActivationClusters(NetworkSignal):
    """Inside each class, two means of the penultimate features; suspect is what is near the smaller one.

    An image scores its place between the two centres (-1 at the larger cluster's, 1 at the smaller one's) times the
    silhouette of the cut, 0..1. Classes whose smaller cluster is too large to be poison score between -2 and -1,
    classes under 20 images -2. Costs one forward pass over the set, and k-means for each class. Clean classes are cut
    in two as well, only less cleanly; poison under a few per cent of a class is missed, and so is poison that is half
    of it.

    Attributes:
        components: Principal components that k-means sees.
        largest: The largest share of a class that may be poison, above 0 and at most 0.5.

    Source:
        Chen et al., Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering, 2018: reduction to 10
        dimensions (there by ICA, here by PCA), 2-means, relative size and silhouette as tests of a class. Ours: one
        score from all three; the silhouette is the simplified one, from distances to centres.
    """

    components: int = 10
    largest: float = 0.35

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ConfigError(f"components: must be at least 1, got {self.components}")
        if not 0 < self.largest <= 0.5:
            raise ConfigError(f"largest: must be above 0 and at most 0.5, got {self.largest}")

    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Return the penultimate features, (B, D)."""
        return penultimate(network)

    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return the place between the centres times the silhouette, -2..1."""
        scores = torch.full((len(kept),), -2.0)
        for label in range(evidence.num_classes):
            rows = (evidence.labels == label).nonzero().squeeze(1)
            fitted = evidence.trained[rows].numpy()
            if fitted.sum() >= _SMALLEST_CLASS:
                scores[rows] = torch.from_numpy(self._cut(kept[rows].double().numpy(), fitted)).float()
        return scores

    def _cut(self, features: NDArray[np.float64], fitted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the scores (n,) of one class."""
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
        from sklearn.exceptions import ConvergenceWarning

        centred = features - features[fitted].mean(0)
        if np.allclose(centred[fitted], 0, atol=1e-6 * np.abs(features).max()):
            return np.full(len(features), -2.0)
        axes = PCA(min(self.components, *centred[fitted].shape), svd_solver="full").fit(centred[fitted])
        points = axes.transform(centred)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            clusters = KMeans(2, n_init=10, random_state=0).fit(points[fitted])
        distance = np.linalg.norm(points[:, None] - clusters.cluster_centers_[None], axis=2)
        sizes = np.bincount(clusters.labels_, minlength=2)
        smaller = int(sizes.argmin())
        apart = np.linalg.norm(clusters.cluster_centers_[0] - clusters.cluster_centers_[1])
        place = (distance[:, 1 - smaller] - distance[:, smaller]) / apart
        near, far = distance[fitted].min(1), distance[fitted].max(1)
        silhouette = float(((far - near) / far).mean())
        if sizes[smaller] < self.largest * sizes.sum():
            return np.asarray(place * silhouette)
        return np.asarray((place - 3) / 2)
