"""Predictions that survive amplified weights: a backdoor's confidence outlasts that of ordinary features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.base import NetworkSignal
from antibackdoor.isolation.signals.persistence import persistence, where_learned
from antibackdoor.training import evaluating

__all__ = ["IbdPsc"]


@dataclass(frozen=True)
class IbdPsc(NetworkSignal):
    """The mean probability of the original prediction when the last batch normalisations are amplified.

    First the fewest last layers are sought whose amplification makes most predictions wrong; then several networks
    amplify one layer more, two layers more, and so on. The network itself is never changed. Costs one forward pass over
    the set and one for each amplified network (six by default), and the search at most as many passes over a sample as
    there are batch normalisations. Images that are not predicted as labelled score zero.

    Attributes:
        factor: What scale and shift of a batch normalisation are multiplied by, above 1.
        networks: How many amplified networks.
        error: The search ends when more than this share of the sample is predicted wrongly, 0..1.
        sample: How many trained images the search looks at.

    Source:
        Hou et al., IBD-PSC, ICML 2024. Ours: without trusted images the search counts errors against the observed
        labels of a sample, which a tenth of poison hardly moves; where the error is never reached, or layers are short,
        the search ends early enough to leave ``networks`` layers, and a network with fewer has as many amplified
        networks as layers. The last layers are the last in order of registration.
    """

    factor: float = 1.5
    networks: int = 5
    error: float = 0.6
    sample: int = 1000

    def __post_init__(self) -> None:
        if not self.factor > 1:
            raise ConfigError(f"factor: must be above 1, got {self.factor}")
        if self.networks < 1:
            raise ConfigError(f"networks: must be at least 1, got {self.networks}")
        if not 0 <= self.error <= 1:
            raise ConfigError(f"error: must be in 0..1, got {self.error}")
        if self.sample < 1:
            raise ConfigError(f"sample: must be at least 1, got {self.sample}")

    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Search for the layers; return prediction, share of networks that leave it and its mean probability.

        Raises:
            ConfigError: The network has no batch normalisation with a scale and a shift.
        """
        amplified = self._amplified(network)
        with torch.no_grad(), evaluating(network.model):
            start = self._start(network, evidence, amplified)
        chosen = amplified[start : start + self.networks]
        return lambda images: persistence(
            network.forward(images), (_forward(network, weights, images) for weights in chosen)
        )

    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return the mean probability, 0..1."""
        return where_learned(kept[:, 2], kept[:, 0], evidence.labels, 0.0)

    def _amplified(self, network: Network) -> list[dict[str, Tensor]]:
        """Return the weights that replace the network's own when its last 1, 2, ... layers are amplified."""
        layers = [
            (name, module)
            for name, module in network.model.named_modules()
            if isinstance(module, _BatchNorm) and module.affine
        ]
        if not layers:
            raise ConfigError("isolation: IbdPsc needs a network with batch normalisation that has scale and shift")
        found: list[dict[str, Tensor]] = []
        weights: dict[str, Tensor] = {}
        for name, layer in reversed(layers):
            prefix = f"{name}." if name else ""
            weights = {
                **weights,
                f"{prefix}weight": layer.weight.detach() * self.factor,
                f"{prefix}bias": layer.bias.detach() * self.factor,
            }
            found.append(weights)
        return found

    def _start(self, network: Network, evidence: Evidence, amplified: list[dict[str, Tensor]]) -> int:
        """Return how many last layers it takes until most predictions are wrong."""
        rows = evidence.trained.nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: self.sample]]
        most = max(0, len(amplified) - self.networks)
        for count in range(1, most):
            wrong = 0
            for images, part in network.batches(rows):
                predicted = _forward(network, amplified[count - 1], images).argmax(1).cpu()
                wrong += int((predicted != evidence.labels[part]).sum())
            if wrong > self.error * len(rows):
                return count
        return most


def _forward(network: Network, weights: dict[str, Tensor], images: Tensor) -> Tensor:
    with network.runtime.autocast():
        logits: Tensor = functional_call(network.model, weights, (images,))
    return logits.float()
