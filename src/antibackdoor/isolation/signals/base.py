"""What a signal is: evidence -> one score for every image, higher is more suspect.

To add a signal, write one file with a frozen dataclass that derives from :class:`Signal` and give it a line in the
table of ``isolation/signals/__init__.py``; ``tests/contracts/test_signals.py`` then tests it by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from antibackdoor.isolation.evidence import Evidence

__all__ = ["Signal"]


@dataclass(frozen=True)
class Signal(ABC):
    """Hyper-parameters in the constructor, evidence in the call."""

    @abstractmethod
    def scores(self, evidence: Evidence) -> Tensor:
        """Return float32 (N,), higher is more suspect, all finite."""
