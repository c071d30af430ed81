"""Likelihood of activations: poison goes through the network along a path that its statistics find improbable."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.base import NetworkSignal
from antibackdoor.isolation.signals.features import watched

__all__ = ["Flare"]

_FLOOR = 1e-6


@dataclass(frozen=True)
class Flare(NetworkSignal):
    """How far an image is from the bulk in the lowest log-likelihoods that its batch normalisations see.

    For every layer: the lowest log-probability, over channels and places, of what comes in, under the layer's running
    mean and variance. The vector of these, one number a layer, is standardised, and its distance from the bulk of all
    images of the set is the score. Costs one forward pass over the set. Clean outliers are far from the bulk too.

    Attributes:
        bulk: The share of the images, those nearest to the middle, that mean and covariance are taken from, 0.5..1.
        steps: How often that share is chosen anew.
        shrinkage: How much of the covariance is replaced by a multiple of the identity, above 0 and at most 1, where
            the distance is that of the standardised numbers alone; layers in a row see nearly the same.

    Source:
        The vector is that of Hou et al., FLARE (TIFS 2025, arXiv 2411.19479). The rest differs: FLARE drops layers one
        by one, embeds by UMAP and clusters by HDBSCAN, takes the largest cluster for clean and gives no score. Here
        it is a Mahalanobis distance with robust mean and covariance (the concentration steps of Rousseeuw and Van
        Driessen, 1999, begun at the medians) of log(1 + shortfall from the layer's best), for minus a lowest
        log-likelihood has a long tail.
    """

    bulk: float = 0.5
    steps: int = 10
    shrinkage: float = 0.5

    def __post_init__(self) -> None:
        if not 0.5 <= self.bulk <= 1:
            raise ConfigError(f"bulk: must be in 0.5..1, got {self.bulk}")
        if self.steps < 1:
            raise ConfigError(f"steps: must be at least 1, got {self.steps}")
        if not 0 < self.shrinkage <= 1:
            raise ConfigError(f"shrinkage: must be above 0 and at most 1, got {self.shrinkage}")

    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Return the lowest log-likelihood at each layer, (B, layers), in nats.

        Raises:
            ConfigError: The network has no batch normalisation with running statistics.
        """
        layers = [
            module
            for module in network.model.modules()
            if isinstance(module, _BatchNorm) and module.running_mean is not None
        ]
        if not layers:
            raise ConfigError("isolation: Flare needs a network with batch normalisation that keeps statistics")
        return watched(network, layers, _lowest)

    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return the distance from the bulk, in standard deviations of it."""
        trained = evidence.trained
        if not bool(trained.any()):
            return torch.zeros(len(kept))
        lows = kept.double()
        tails = (lows[trained].amax(0) - lows).clamp_min(0).log1p()
        middle = tails[trained].median(0).values
        spread = 1.4826 * (tails[trained] - middle).abs().median(0).values
        points = (tails - middle) / (spread + _FLOOR)
        own = points[trained]
        count = max(1, math.ceil(self.bulk * len(own)))
        distance = points.square().sum(1)
        identity = torch.eye(points.shape[1], dtype=torch.float64)
        for _ in range(self.steps):
            inside = own[distance[trained].argsort(stable=True)[:count]]
            mean = inside.mean(0)
            covariance = (inside - mean).T @ (inside - mean) / count
            scale = covariance.diagonal().mean() + _FLOOR
            covariance = (1 - self.shrinkage) * covariance + self.shrinkage * scale * identity
            away = points - mean
            distance = (away * torch.linalg.solve(covariance, away.T).T).sum(1)
        return distance.clamp_min(0).sqrt().float()


def _lowest(layer: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
    shape = (1, -1, *(1,) * (inputs.ndim - 2))
    mean, variance = (getattr(layer, name).reshape(shape).float() for name in ("running_mean", "running_var"))
    variance = variance + layer.eps
    logs: Tensor = -0.5 * ((inputs.float() - mean).square() / variance + (2 * math.pi * variance).log())
    return logs.flatten(1).amin(1, keepdim=True)
