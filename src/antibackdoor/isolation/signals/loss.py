"""The loss itself: backdoored images are learned faster (Li et al., Anti-Backdoor Learning, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.signals.base import Signal

__all__ = ["Loss"]


@dataclass(frozen=True)
class Loss(Signal):
    """Minus the loss, so that a low one is suspect.

    Attributes:
        over: "last" takes the last epoch, as the paper does; "trajectory" the mean over all epochs, which is less
            noisy but favours what was easy from the start.
    """

    over: Literal["last", "trajectory"] = "last"

    def scores(self, evidence: Evidence) -> Tensor:
        """Return minus the loss in nats."""
        return -evidence.losses[-1] if self.over == "last" else -evidence.losses.mean(0)
