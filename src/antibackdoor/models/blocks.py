"""What several networks are built of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PreActBlock"]


class PreActBlock(nn.Module):
    """Pre-activation basic block; the shortcut of a widening block starts after the first activation.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: Of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        widens = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        """Map float (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + kept
