"""Forward passes over a whole set, in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.training.runtime import Runtime
from antibackdoor.types import ImageSet

__all__ = ["evaluating", "logits_of"]


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep the network in evaluation mode for as long as the context lasts.

    Args:
        model: Left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def logits_of(
    model: nn.Module, data: ImageSet, runtime: Runtime, *, index: Tensor | None = None, batch_size: int | None = None
) -> Tensor:
    """Return the logits of every image, or of some.

    Args:
        model: Takes float (B, C, H, W) in [0, 1]; left in the mode it was in.
        data: The images.
        runtime: Device and precision.
        index: int64 (M,), rows to compute; all by default.
        batch_size: Images in one pass; by default 1,024, and 128 on a CPU, where more activations leave the cache.

    Returns:
        float32 (M, K) on the CPU, in the order of ``index``.
    """
    rows = torch.arange(len(data)) if index is None else index
    if batch_size is None:
        batch_size = 128 if runtime.device.type == "cpu" else 1024
    batches = Batches(data, runtime.device, resident=runtime.device.type == "cpu")
    parts = []
    with evaluating(model):
        for part in rows.split(batch_size):
            images, _ = batches.take(part)
            pixels = images.to(torch.float32, memory_format=torch.channels_last).div_(255)
            with runtime.autocast():
                parts.append(model(pixels).float().cpu())
    return torch.cat(parts) if parts else torch.empty(0, data.num_classes)
