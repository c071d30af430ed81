"""Spectral signatures: poison stands out along the direction in which the features of its class vary most."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.base import NetworkSignal
from antibackdoor.isolation.signals.features import penultimate

__all__ = ["Spectral"]

_SMALLEST_CLASS = 20


@dataclass(frozen=True)
class Spectral(NetworkSignal):
    """Inside each class, the squared projection of the centred penultimate features on their top singular vector.

    Costs one forward pass over the set and a singular value decomposition for each class. Classes under 20 images score
    zero. A poisoned class varies more than others, so scores are comparable over the whole set, but not exactly so.
    Weak at low rates and where poison has the features of ordinary images (WaNet, Adap-Blend).

    Source:
        Tran et al., Spectral Signatures in Backdoor Attacks, NeurIPS 2018. As in the paper the same centred features
        give the direction and are projected on it; several public versions project features that are not centred. Mean
        and direction are those of trained images. There is no removal of 1.5 times a known rate: cutting is another
        step.
    """

    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Return the penultimate features, (B, D)."""
        return penultimate(network)

    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return the squared projection, in squared units of the features."""
        scores = torch.zeros(len(kept), dtype=torch.float64)
        for label in range(evidence.num_classes):
            rows = (evidence.labels == label).nonzero().squeeze(1)
            own = kept[rows].double()
            fitted = own[evidence.trained[rows]]
            if len(fitted) < _SMALLEST_CLASS:
                continue
            mean = fitted.mean(0)
            top = torch.linalg.svd(fitted - mean, full_matrices=False).Vh[0]
            scores[rows] = ((own - mean) @ top).square()
        return scores.float()
