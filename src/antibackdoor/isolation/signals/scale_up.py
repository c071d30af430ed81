"""Predictions that survive brightening: a trigger is still there when all pixels are multiplied."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.signals.base import NetworkSignal
from antibackdoor.isolation.signals.persistence import persistence, where_learned

__all__ = ["ScaleUp"]


@dataclass(frozen=True)
class ScaleUp(NetworkSignal):
    """How many of the multiplied images are predicted as the image itself.

    Costs one forward pass over the set, and one more for every scale (six by default). Weak where the trigger does not
    survive clipping (WaNet) and on classes that are bright throughout. Images that are not predicted as labelled score
    zero.

    Attributes:
        scales: What the pixels, in [0, 1], are multiplied by before they are clipped; each above 1.

    Source:
        Guo et al., SCALE-UP, ICLR 2023, the data-free variant (scaled prediction consistency). Ours: ties, of which a
        count over five scales has many, are broken by the mean probability of the original prediction over the scales;
        and images that the network gets wrong are put last instead of being left out.
    """

    scales: tuple[float, ...] = (3, 5, 7, 9, 11)

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 1:
            raise ConfigError(f"scales: must be one or more numbers above 1, got {self.scales}")

    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Return prediction, share of scales that leave it and its mean probability, for each image."""
        return lambda images: persistence(
            network.forward(images), (network.forward((scale * images).clamp(0, 1)) for scale in self.scales)
        )

    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return the number of agreeing scales plus the mean probability, divided so as to lie in 0..1."""
        count = len(self.scales)
        return where_learned((count * kept[:, 1] + kept[:, 2]) / (count + 1), kept[:, 0], evidence.labels, 0.0)
