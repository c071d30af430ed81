"""What signals look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.network import Network
from antibackdoor.types import History

__all__ = ["Evidence"]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything a signal may use; never the truth.

    Attributes:
        losses: float32 (E, N), cross-entropy of every image in every epoch, finite.
        labels: int64 (N,), as observed.
        num_classes: K.
        held_out: bool (N,), images that were not trained on, so that their losses fall less; None where there are none.
            Signals that fit something fit it to the others.
        network: The network that these losses are of, for signals that make forward passes; None where there is none.
        measured: What such signals kept of every image, float (N, M) by signal; see ``isolation.measured``.
    """

    losses: Tensor
    labels: Tensor
    num_classes: int
    held_out: Tensor | None = None
    network: Network | None = None
    measured: Mapping[object, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.losses.ndim != 2 or self.losses.shape[0] < 1 or self.losses.shape[1] != self.labels.shape[0]:
            raise ConfigError(
                f"isolation: losses have shape {tuple(self.losses.shape)}, expected (epochs, {self.labels.shape[0]}) "
                "with at least one epoch"
            )
        if self.held_out is not None and (
            self.held_out.shape != self.labels.shape or self.held_out.dtype != torch.bool
        ):
            raise ConfigError(f"isolation: held_out must be bool ({self.labels.shape[0]},)")
        if not bool(torch.isfinite(self.losses).all()):
            raise ConfigError("isolation: some losses are missing or not finite; every image needs one in every epoch")

    @staticmethod
    def of(history: History, labels: Tensor, num_classes: int, network: Network | None = None) -> Evidence:
        """Return the evidence that a phase of training left."""
        held_out = None if history.held_out is None else torch.from_numpy(history.held_out)
        return Evidence(torch.from_numpy(history.losses), labels, num_classes, held_out, network)

    @property
    def trained(self) -> Tensor:
        """Bool (N,), the images that are not held out."""
        return torch.ones(len(self.labels), dtype=torch.bool) if self.held_out is None else ~self.held_out
