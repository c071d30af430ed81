"""One forward pass as an objective sees it, and how methods call the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor, nn

from antibackdoor.training.plan import Phase
from antibackdoor.training.runtime import Runtime
from antibackdoor.types import History, ImageSet

__all__ = ["Fit", "Objective", "Step", "mean_loss", "split_batches"]


@dataclass(frozen=True, eq=False)
class Step:
    """One forward pass, as an objective sees it.

    Attributes:
        images: float (B, C, H, W) in [0, 1], augmented.
        labels: int64 (B,).
        index: int64 (B,), rows of the set.
        logits: float (B, K), with gradient.
        losses: float32 (B,), cross-entropy of each image, with gradient.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    logits: Tensor
    losses: Tensor


Objective: TypeAlias = Callable[[Step], Tensor]


def mean_loss(step: Step) -> Tensor:
    """The objective of ordinary training: the mean cross-entropy of the batch."""
    return step.losses.mean()


class Fit(Protocol):
    """How methods call the training loop, and where it computes; a :class:`Trainer` is one."""

    @property
    def runtime(self) -> Runtime:
        """Device, precision, processes; forward passes of a method's own run there too."""

    def __call__(
        self,
        model: nn.Module,
        data: ImageSet,
        phase: Phase,
        *,
        objective: Objective = mean_loss,
        subset: Tensor | None = None,
    ) -> History:
        """Train ``model`` in place; see :meth:`Trainer.fit`."""


def split_batches(count: int, batch_size: int, world: int = 1) -> list[int]:
    """Return the sizes of the batches of one epoch: all of them full, but for the last.

    A last batch too small for its batch-normalisation statistics to mean much (under an eighth of a full one, or under
    two images a process) joins the one before it.

    Args:
        count: Images in the epoch.
        batch_size: Images in a full batch.
        world: Processes that share each batch.
    """
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if rest and full and rest < max(2 * world, batch_size // 8):
        sizes[-1] += rest
    elif rest:
        sizes.append(rest)
    return sizes
