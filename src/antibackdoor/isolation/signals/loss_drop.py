"""How far the loss fell: poisoned images start as label noise and are then learned at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.signals.base import Signal

__all__ = ["LossDrop"]

# A loss below this is a matter of rounding, so its logarithm says nothing more.
_FLOOR = 1e-6


@dataclass(frozen=True)
class LossDrop(Signal):
    """Mean log-loss of the first epochs minus that of the last.

    Easy clean images have a low loss from the first epoch on, and hard ones keep a high one; images that share a
    trigger begin as contradictions of their class and end as the easiest of all. A ratio of losses, it does not
    favour easy classes as the loss does.

    Attributes:
        part: Share of the epochs, at each end, that is averaged; above 0 and at most 0.5.

    Source:
        Ours. Losses in the early epochs of poisoned images were seen to be high by e.g. BaDLoss (ICLR 2025), which
        compares whole loss trajectories with those of trusted images.
    """

    part: float = 1 / 3

    def __post_init__(self) -> None:
        if not 0 < self.part <= 0.5:
            raise ConfigError(f"part: must be above 0 and at most 0.5, got {self.part}")

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the fall of the log-loss, in nats of log."""
        logs = evidence.losses.clamp_min(_FLOOR).log()
        count = max(1, int(len(logs) * self.part))
        return logs[:count].mean(0) - logs[-count:].mean(0)
