"""Random batches and single updates, for attacks that train generators rather than classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from antibackdoor.ops.augment import augment
from antibackdoor.seeds import Seeds
from antibackdoor.types import ImageSet

__all__ = ["Minibatches", "batch_size_for", "descend"]


def batch_size_for(shape: tuple[int, int, int], most: int, *, least: int) -> int:
    """Return how many images have the pixels of ``most`` images of 32x32, so that a step costs about the same.

    Args:
        shape: C, H, W.
        most: Images of up to 32x32 pixels in a batch.
        least: Images of any size in a batch.
    """
    _, height, width = shape
    return min(most, max(least, most * 1024 // (height * width)))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, peak: float, step: int, steps: int) -> float:
    """Make one update, at a rate that stays for half of the steps and then falls linearly.

    Args:
        optimizer: Of the parameters to change.
        loss: Scalar.
        peak: Learning rate of the first half.
        step: Updates made before, 0..steps-1.
        steps: All updates.

    Returns:
        The rate used.
    """
    rate = peak * min(1.0, 2 * (1 - step / steps))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return rate


class Minibatches:
    """Random batches of float images on one device, drawn with replacement.

    Args:
        clean: The images.
        size: Images in a batch; may exceed the set.
        device: Where batches go.
        seeds: Source of the streams.
        name: Of the streams.
    """

    def __init__(self, clean: ImageSet, size: int, device: torch.device, seeds: Seeds, name: str) -> None:
        self.size = size
        self._clean, self._device = clean, device
        self._order, self._changes = seeds.generator(f"{name} batches"), seeds.generator(f"{name} augment")

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return float (B, C, H, W) in [0, 1] and int64 (B,)."""
        rows = torch.randint(len(self._clean), (self.size,), generator=self._order)
        images = self._clean.images[rows].to(self._device).float().div(255)
        return images.contiguous(memory_format=torch.channels_last), self._clean.labels[rows].to(self._device)

    def augmented(self, images: Tensor) -> Tensor:
        """Return images cropped and flipped, as a victim is taken to do; gradients flow through."""
        return augment(images, ("crop", "flip"), self._changes).contiguous(memory_format=torch.channels_last)
