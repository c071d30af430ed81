"""Residual networks: pre-activation for small images, post-activation for larger ones (He et al., 2016)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from antibackdoor.models.blocks import PreActBlock

__all__ = ["PreActResNet", "ResNet"]

_STAGES = (64, 128, 256, 512)


class PreActResNet(nn.Module):
    """PreAct-ResNet for small images: a 3x3 stem without pooling, four stages of basic blocks.

    Args:
        blocks: Blocks in each stage; (2, 2, 2, 2) is depth 18.
        channels: C of the input.
        num_classes: K.

    Source:
        He et al., Identity Mappings in Deep Residual Networks, ECCV 2016. Unlike the version in wide use for
        CIFAR-10 there is a last batch normalisation before pooling, as in the paper.
    """

    def __init__(self, blocks: tuple[int, int, int, int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        layers: list[nn.Module] = []
        inputs = 64
        for stage, (outputs, count) in enumerate(zip(_STAGES, blocks, strict=True)):
            for block in range(count):
                layers.append(PreActBlock(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float (N, C, H, W) to logits (N, K)."""
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, 0, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet for photographs: a 7x7 stem of stride 2, max pooling, four stages of basic blocks.

    Args:
        blocks: Blocks in each stage; (3, 4, 6, 3) is depth 34.
        channels: C of the input.
        num_classes: K.

    Source:
        He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """

    def __init__(self, blocks: tuple[int, int, int, int], channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        layers: list[nn.Module] = []
        inputs = 64
        for stage, (outputs, count) in enumerate(zip(_STAGES, blocks, strict=True)):
            for block in range(count):
                layers.append(_Block(inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map float (N, C, H, W) to logits (N, K)."""
        x = self.blocks(self.stem(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits
