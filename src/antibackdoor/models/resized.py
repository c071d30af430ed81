"""A network that sees images smaller than they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Resized", "size_within"]


def size_within(height: int, width: int, side: int) -> tuple[int, int] | None:
    """Return the size of a smaller picture of the same shape whose longer side is ``side``; None where it fits already.

    Args:
        height: In pixels.
        width: In pixels.
        side: Longest that a side may be, in pixels.
    """
    share = side / max(height, width)
    return None if share >= 1 else (max(1, round(share * height)), max(1, round(share * width)))


class Resized(nn.Module):
    """A network whose body sees images of another size, each pixel the mean of the area that it covers.

    Args:
        body: Any network from float (N, C, height, width) to logits (N, K).
        height: Of what the body sees, in pixels.
        width: Of what the body sees, in pixels.
    """

    def __init__(self, body: nn.Module, height: int, width: int) -> None:
        super().__init__()
        self.body = body
        self.size = (height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) to logits (N, K)."""
        logits: Tensor = self.body(torch.nn.functional.interpolate(images, self.size, mode="area"))
        return logits
