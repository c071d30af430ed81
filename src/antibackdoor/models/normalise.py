"""Normalisation inside the network, so that everything outside it speaks of pixels in [0, 1]."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["Normalised", "channel_statistics"]


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1] and standardises each channel before its body sees them.

    Args:
        body: Any network from float (N, C, H, W) to logits (N, K).
        mean: C channel means in [0, 1].
        std: C channel standard deviations.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).float())
        self.register_buffer("std", std.reshape(1, -1, 1, 1).float())

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to logits (N, K)."""
        logits: Tensor = self.body((images - self.mean) / self.std)
        return logits


def channel_statistics(images: Tensor, *, at_most: int = 4096) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel.

    Args:
        images: uint8 (N, C, H, W).
        at_most: How many images are enough; under twice as many, evenly spaced, are looked at.

    Returns:
        Two float32 (C,), of pixels in [0, 1]; no standard deviation is under 1/255.
    """
    step = max(1, images.shape[0] // at_most)
    sample = images[::step].float().div_(255)
    return sample.mean(dim=(0, 2, 3)), sample.std(dim=(0, 2, 3)).clamp_min(1 / 255)
