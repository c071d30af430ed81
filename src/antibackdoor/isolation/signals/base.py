"""What a signal is: evidence -> one score for every image, higher is more suspect.

To add a signal, write one file with a frozen dataclass that derives from :class:`Signal` and give it a line in the
table of ``isolation/signals/__init__.py``; ``tests/contracts/test_signals.py`` then tests it by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.network import Measure, Network

__all__ = ["NetworkSignal", "Signal", "measured"]


@dataclass(frozen=True)
class Signal(ABC):
    """Hyper-parameters in the constructor, evidence in the call."""

    @abstractmethod
    def scores(self, evidence: Evidence) -> Tensor:
        """Return float32 (N,), higher is more suspect, all finite."""


@dataclass(frozen=True)
class NetworkSignal(Signal):
    """A signal that looks at the trained network with forward passes, in evaluation mode, without augmentation.

    It is computed in two steps, so that several of them share one pass over the set (:func:`measured`): what to keep of
    each image, and scores from that.
    """

    @abstractmethod
    def measure(self, network: Network, evidence: Evidence) -> Measure:
        """Return what is to be computed for each batch of images; a search for a setting happens here.

        Args:
            network: The network and the set.
            evidence: Losses and labels.

        Returns:
            A function float (B, C, H, W) in [0, 1] -> float (B, M), called without gradients.

        Raises:
            ConfigError: The network has not what the signal looks at.
        """

    @abstractmethod
    def judge(self, kept: Tensor, evidence: Evidence) -> Tensor:
        """Return float32 (N,) scores from what was kept, float32 (N, M)."""

    def scores(self, evidence: Evidence) -> Tensor:
        """Return the scores; makes its own pass over the set if none was made.

        Raises:
            ConfigError: The evidence has no network.
        """
        if self not in evidence.measured:
            evidence = measured(evidence, [self])
        return self.judge(evidence.measured[self], evidence).float()


def measured(evidence: Evidence, signals: Sequence[Signal]) -> Evidence:
    """Return the evidence with what the network signals among ``signals`` keep, taken in one pass over the set.

    Raises:
        ConfigError: The evidence has no network.
    """
    wanted = [signal for signal in signals if isinstance(signal, NetworkSignal) and signal not in evidence.measured]
    if not wanted:
        return evidence
    network = evidence.network
    if network is None:
        names = ", ".join(type(signal).__name__ for signal in wanted)
        raise ConfigError(f"isolation: {names} needs the trained network, not losses alone")
    kept = network.measure([signal.measure(network, evidence) for signal in wanted])
    return replace(evidence, measured={**evidence.measured, **dict(zip(wanted, kept, strict=True))})
