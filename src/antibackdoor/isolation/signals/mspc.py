"""Predictions that survive brightening under a mask, which is learned so that it keeps what a trigger needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.base import NetworkSignal
from antibackdoor.isolation.signals.persistence import persistence, where_learned
from antibackdoor.training import evaluating

__all__ = ["Mspc"]


@dataclass(frozen=True)
class Mspc(NetworkSignal):
    """How many of the masked, shifted and multiplied images are predicted as the image itself.

    The mask, one for the whole set, begins with every pixel and loses those that the suspects of a sample can do
    without: a divergence keeps their predictions, a penalty makes the mask small, and suspects are chosen anew, in
    turns. With an odd number of scales, a score above 0 is the method's own verdict of poison. Costs one forward pass
    over the set and one more for every scale (twelve in all by default), as much over the sample in each round, and for
    the mask forward and backward passes over ``rounds * steps * batch_size`` images for every scale (110,000 images by
    default, whatever the size of the set). Weak where one mask does not fit all triggers (WaNet). Images that are not
    predicted as labelled are no suspects and score -1.

    Attributes:
        scales: What the pixels, in [0, 1], are multiplied by before they are clipped.
        shift: What is first subtracted from the pixels, 0..1.
        rounds: How often the suspects are chosen and the mask is trained.
        steps: Updates of the mask in a round.
        sample: How many trained images, drawn at random, the mask is trained on.
        batch_size: Images in an update.
        lr: Learning rate of the mask; ten times ``lr * penalty`` is what a pixel without use loses in an update.
        penalty: Weight of the sum of the mask.

    Source:
        Pal et al., Backdoor Secrets Unveiled (ICLR 2024), with the shift of its released script. Ours: the mask is
        trained on a sample instead of the set, in fewer and larger steps; the divergence is averaged over the suspects
        instead of all images, so that the penalty means the same at every poisoning rate; ties are broken by the mean
        probability of the original prediction.
    """

    scales: tuple[float, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
    shift: float = 0.1
    rounds: int = 2
    steps: int = 100
    sample: int = 1000
    batch_size: int = 50
    lr: float = 0.2
    penalty: float = 0.01

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 1:
            raise ConfigError(f"scales: must be one or more numbers above 1, got {self.scales}")
        if not 0 <= self.shift < 1:
            raise ConfigError(f"shift: must be in 0..1, got {self.shift}")
        for name in ("rounds", "steps", "sample", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ConfigError(f"lr: must be above 0, got {self.lr}")
        if self.penalty < 0:
            raise ConfigError(f"penalty: must be at least 0, got {self.penalty}")

    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Train the mask; return prediction, share of scales that leave it and its mean probability, for each image."""
        with evaluating(network.model):
            mask = self._mask(network, evidence)
        return lambda images: self._persistence(network, images, mask)

    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return agreeing less disagreeing scales, moved a little by the mean probability; in -1..1."""
        count = len(self.scales)
        score = 2 * (count * kept[:, 1] + kept[:, 2]) / (count + 1) - 1
        return where_learned(score, kept[:, 0], evidence.labels, -1.0)

    def _changed(self, images: Tensor, mask: Tensor, scale: float) -> Tensor:
        return (scale * (images - self.shift) * mask).clamp(0, 1)

    def _persistence(self, network: Network, images: Tensor, mask: Tensor) -> Tensor:
        changed = (network.forward(self._changed(images, mask, scale)) for scale in self.scales)
        return persistence(network.forward(images), changed)

    def _mask(self, network: Network, evidence: Evidence) -> Tensor:
        """Return the mask, float32 (H, W) in 0..1, on the device."""
        rows = evidence.trained.nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: self.sample]]
        mask = torch.ones(network.data.shape[1:], device=network.runtime.device)
        if not len(rows):
            return mask
        with torch.no_grad():
            base = torch.cat([network.forward(images).log_softmax(1) for images, _ in network.batches(rows)])
        for _ in range(self.rounds):
            with torch.no_grad():
                kept = torch.cat([self._persistence(network, images, mask) for images, _ in network.batches(rows)])
            kept = kept.cpu()
            suspects = (kept[:, 1] > 0.5) & (kept[:, 0].long() == evidence.labels[rows])
            mask = self._fit(network, rows[suspects], base[suspects.to(base.device)], mask)
        return mask

    def _fit(self, network: Network, rows: Tensor, base: Tensor, mask: Tensor) -> Tensor:
        """Return the mask after training on the images ``rows``, whose log-probabilities are ``base``."""
        mask = mask.clone().requires_grad_()
        optimiser = torch.optim.SGD([mask], lr=self.lr, momentum=0.9, weight_decay=5e-4)
        size = min(self.batch_size, len(rows))
        for step in range(self.steps if size else 0):
            # Round and round the suspects, which are in random order.
            drawn = torch.arange(step * size, (step + 1) * size) % len(rows)
            images, _ = next(network.batches(rows[drawn], batch_size=size))
            gradient = self.penalty * mask.detach().sign()
            for scale in self.scales:  # One after the other, so that one pass at a time is in memory.
                with torch.enable_grad():
                    logs = network.forward(self._changed(images, mask, scale)).log_softmax(1)
                    target = base[drawn.to(base.device)]
                    divergence = F.kl_div(logs, target, log_target=True, reduction="batchmean")
                gradient += torch.autograd.grad(divergence, mask)[0] / len(self.scales)
            mask.grad = gradient
            optimiser.step()
            with torch.no_grad():
                mask.clamp_(0, 1)
        return mask.detach()
