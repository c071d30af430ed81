"""The area under the loss curve, cut in two inside each class: what is learned fast has a small one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.mixture import two_gaussians
from antibackdoor.isolation.signals.base import Signal

__all__ = ["Aul"]

_FLOOR = 1e-6
_SMALLEST_CLASS = 20


@dataclass(frozen=True)
class Aul(Signal):
    """Inside each class, the posterior of the lower of two Gaussians of the area under the log-loss curve.

    It is multiplied by how much better two describe the class than one (the gain in BIC per image, or zero), so that
    the easy half of every clean class does not score like poison. Needs no forward passes. Classes under 20 images
    score zero. One number an image, it takes what is easy from the start for what is learned at once.

    Source:
        The area under the loss curve and its two-component mixture come from a search for wrong labels (2019, at
        OpenReview), which looks at the upper component. Ours: the lower one, the logarithm of the loss, each class on
        its own, the weight by BIC; and an area above the upper mean has posterior zero, since of two Gaussians of
        different width the lower may be the more likely on both sides.
    """

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the posterior times the gain in BIC per image."""
        areas = evidence.losses.clamp_min(_FLOOR).log().double().mean(0)
        scores = torch.zeros(len(areas))
        for label in range(evidence.num_classes):
            rows = (evidence.labels == label).nonzero().squeeze(1)
            fitted = evidence.trained[rows].numpy()
            if fitted.sum() >= _SMALLEST_CLASS:
                scores[rows] = torch.from_numpy(_cut(areas[rows].numpy(), fitted)).float()
        return scores


def _cut(areas: NDArray[np.float64], fitted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the scores (n,) of one class."""
    own = areas[fitted]
    if own.std() < _FLOOR:
        return np.zeros(len(areas))
    points = ((areas - own.mean()) / own.std())[:, None]
    two, gain = two_gaussians(points[fitted])
    lower = int(two.means_[:, 0].argmin())
    posterior = np.where(points[:, 0] > two.means_[1 - lower, 0], 0.0, two.predict_proba(points)[:, lower])
    return np.asarray(posterior * max(gain, 0.0))
