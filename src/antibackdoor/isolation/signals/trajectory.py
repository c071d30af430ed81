"""Loss trajectories, clustered inside each class: images that share a trigger share one learning event."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.mixture import two_gaussians
from antibackdoor.isolation.signals.base import Signal

__all__ = ["Trajectory"]

_FLOOR = 1e-6
_SMALLEST_CLASS = 20
# The share of all images, those whose loss fell furthest, that decides which component is suspect.
_VOTERS = 0.01


@dataclass(frozen=True)
class Trajectory(Signal):
    """Inside each class, two Gaussian components of the standardised log-loss trajectories.

    Every class is cut in two whether or not it holds poison, so an image scores high only if three things are true: it
    is in the suspect component, two components describe its class much better than one (the gain in BIC per image),
    and the class holds many of the images whose loss fell furthest, of the whole set. These images also decide which
    component is suspect; it may be the smaller or the larger one. Needs a few epochs after the backdoor was learned.
    Classes under 20 images score zero.

    Attributes:
        components: Principal components that the mixture sees, at most the number of epochs.

    Source:
        Ours in this combination. Trajectories were clustered before by TellTale (NDSS 2025; the last 30 of 120 epochs,
        over all classes at once) and compared with those of trusted images by BaDLoss (ICLR 2025).
    """

    components: int = 4

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ConfigError(f"components: must be at least 1, got {self.components}")

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the responsibility of the suspect component, times the class's gain in BIC per image and its votes."""
        logs = evidence.losses.clamp_min(_FLOOR).log().double()
        part = max(1, len(logs) // 3)
        drop = (logs[:part].mean(0) - logs[-part:].mean(0)).numpy()
        furthest = drop >= np.quantile(drop, 1 - _VOTERS)
        scores = torch.zeros(len(evidence.labels))
        trained = evidence.trained
        for label in range(evidence.num_classes):
            rows = (evidence.labels == label).nonzero().squeeze(1)
            fitted = trained[rows].numpy()
            if fitted.sum() >= _SMALLEST_CLASS:
                responsibility, gain = self._cut(
                    logs[:, rows].T.numpy(), drop[rows.numpy()], furthest[rows.numpy()], fitted
                )
                # One vote more for every class, so that none scores zero for want of voters.
                standing = (furthest[rows.numpy()].sum() + 1) / (furthest.sum() + evidence.num_classes)
                scores[rows] = torch.from_numpy(responsibility * max(gain, 0.0) * standing).float()
        return scores

    def _cut(
        self,
        trajectories: NDArray[np.float64],
        drop: NDArray[np.float64],
        furthest: NDArray[np.bool_],
        fitted: NDArray[np.bool_],
    ) -> tuple[NDArray[np.float64], float]:
        """Return the responsibility (n,) of one class's suspect component, and the gain in BIC per image."""
        from sklearn.decomposition import PCA

        own = trajectories[fitted]
        standard = (trajectories - own.mean(0)) / (own.std(0) + _FLOOR)
        if not standard[fitted].any():
            return np.zeros(len(standard)), 0.0
        axes = PCA(min(self.components, standard.shape[1]), random_state=0).fit(standard[fitted])
        points = axes.transform(standard)
        two, gain = two_gaussians(points[fitted])
        share = two.predict_proba(points)
        drop_share = share[furthest & fitted].sum(0)
        if np.isclose(drop_share[0], drop_share[1]):  # Mostly: none of the images that fell furthest is in this class.
            drop_share = (share * drop[:, None])[fitted].sum(0) / np.maximum(share[fitted].sum(0), _FLOOR)
        return share[:, int(drop_share.argmax())], gain
