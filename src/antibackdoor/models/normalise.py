"""Normalisation inside the network, so that everything outside it speaks of pixels in [0, 1]."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate

__all__ = ["Normalised", "channel_statistics"]


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1] and standardises each channel before its body sees them.

    Args:
        body: Any network from float (N, C, H, W) to logits (N, K).
        mean: Channel means in [0, 1]; of three, grey images become three equal channels.
        std: Channel standard deviations, as many.
        size: Height and width in pixels that the body sees, whatever the images have; None for as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, mean: Tensor, std: Tensor, size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.body = body
        self.size = size
        self.register_buffer("mean", mean.reshape(1, -1, 1, 1).float())
        self.register_buffer("std", std.reshape(1, -1, 1, 1).float())

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to logits (N, K)."""
        if self.size is not None and images.shape[-2:] != self.size:
            images = interpolate(images, self.size, mode="bilinear", antialias=True, align_corners=False)
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
