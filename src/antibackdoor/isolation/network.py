"""The trained network as evidence: what signals that need forward passes are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.training import Runtime, evaluating
from antibackdoor.types import ImageSet

__all__ = ["Measure", "Network"]

# float (B, C, H, W) in [0, 1] on the device -> float (B, M): what a signal keeps of each image of a batch.
Measure: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Network:
    """A network that was trained on the set, and the set.

    Attributes:
        model: Takes float (B, C, H, W) in [0, 1]; on the device of ``runtime``.
        data: The images and observed labels.
        runtime: Device and precision.
    """

    model: nn.Module
    data: ImageSet
    runtime: Runtime

    def batches(self, rows: Tensor | None = None, *, batch_size: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and their rows, in the order of the set.

        Args:
            rows: int64 (M,), which images; all by default.
            batch_size: Images in a batch; by default 512, and 128 on a CPU.

        Yields:
            float (B, C, H, W) in [0, 1] on the device, channels last; int64 (B,) rows, on the CPU.
        """
        on_cpu = self.runtime.device.type == "cpu"
        size = batch_size or (128 if on_cpu else 512)
        source = Batches(self.data, self.runtime.device, resident=on_cpu)
        for part in (torch.arange(len(self.data)) if rows is None else rows).split(size):
            images, _ = source.take(part)
            yield images.to(torch.float32, memory_format=torch.channels_last).div_(255), part

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 (B, K), in the run's precision; gradients flow where they are enabled."""
        with self.runtime.autocast():
            logits: Tensor = self.model(images)
        return logits.float()

    @torch.no_grad()
    def measure(self, measures: list[Measure]) -> list[Tensor]:
        """Take every measure of every image, in evaluation mode, in one pass over the set.

        Args:
            measures: What to take.

        Returns:
            One float32 (N, M) tensor a measure, on the CPU.
        """
        parts: list[list[Tensor]] = [[] for _ in measures]
        with evaluating(self.model):
            for images, _ in self.batches():
                for kept, measure in zip(parts, measures, strict=True):
                    kept.append(measure(images).float().cpu())
        return [torch.cat(kept) for kept in parts]
