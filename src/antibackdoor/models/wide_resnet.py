"""Wide residual networks for small images (Zagoruyko and Komodakis, BMVC 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.models.blocks import PreActBlock

__all__ = ["WideResNet"]


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
                layers.append(PreActBlock(inputs, outputs, 2 if group and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float (N, C, H, W) to logits (N, K)."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
