"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WideResNet"]


class _Block(nn.Module):
    """Pre-activation basic block; the shortcut of a widening block starts after the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        widens = inputs != outputs or stride != 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + kept


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of blocks at 16, 32 and 64 times ``width`` channels.

    Args:
        depth: 6 n + 4 layers, such as 10, 16, 28, 40.
        width: Channel multiplier.
        channels: C of the input.
        num_classes: K.

    Raises:
        ValueError: The depth is not of the form 6 n + 4.
    """

    def __init__(self, depth: int, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth {depth} of a wide ResNet is not 6 n + 4 (10, 16, 22, 28, 40)")
        blocks = (depth - 4) // 6
        self.stem = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        inputs = 16
        for group, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for block in range(blocks):
                layers.append(_Block(inputs, outputs, 2 if group and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float (N, C, H, W) to logits (N, K)."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
