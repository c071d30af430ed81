"""Small image-to-image networks that attacks train to make triggers; all work on any image size from 8 pixels up.

Sizes that do not halve evenly are no trouble: a halved map is rounded up or down, and on the way back each map is
enlarged to exactly the size that its counterpart had.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "BitDecoder",
    "BitEncoder",
    "Injector",
    "StyleGenerator",
    "UShape",
    "apply_in_blocks",
    "build_seeded",
    "depth_for",
    "frozen",
]

M = TypeVar("M", bound=nn.Module)


def build_seeded(make: Callable[[], M], generator: torch.Generator) -> M:
    """Build a network whose initial weights the generator decides, and leave the global random state as it was.

    Args:
        make: Builds it.
        generator: Only its initial seed is read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return make()


def depth_for(height: int, width: int) -> int:
    """Return how often to halve images so that about 4 pixels of the shorter side are left: 3 at 32, 5 at 128."""
    return max(1, round(math.log2(max(8, min(height, width)) / 4)))


def frozen(network: M) -> M:
    """Return the network on the CPU, in evaluation mode and without gradients: ready to stamp.

    Triggers are made on the CPU wherever the network was trained, so that they are the same bytes everywhere.
    """
    network.cpu().eval().requires_grad_(False)
    return network


@torch.no_grad()
def apply_in_blocks(network: Callable[[Tensor], Tensor], images: Tensor, *, block: int = 64) -> Tensor:
    """Apply a network to blocks of one fixed size, so that an image's output does not depend on its company.

    Convolution kernels are chosen by the shape of the batch, and different kernels differ in the last bits, which
    rounding to uint8 now and then makes a whole step of. The last block is filled up with copies.

    Args:
        network: float (B, C, H, W) -> (B, ...), in evaluation mode.
        images: float (N, C, H, W).
        block: Images in one pass.

    Returns:
        float (N, ...).
    """
    if len(images) == 0:
        return network(images)
    parts = []
    for part in images.split(block):
        missing = block - len(part)
        full = torch.cat([part, part[:1].expand(missing, -1, -1, -1)]) if missing else part
        parts.append(network(full.contiguous(memory_format=torch.channels_last))[: len(part)])
    return torch.cat(parts).contiguous()


def _upsampled(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size=(size[-2], size[-1]), mode="nearest")


def _conv_norm(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs, momentum=0.05), nn.ReLU()]


class UShape(nn.Module):
    """Down and up again without skips: what comes out follows the content of the image, not its pixels.

    Args:
        channels: C of the input.
        outputs: Channels of the output.
        width: Channels at full resolution; they double with each halving, up to four times as many.
        depth: Halvings.

    Source:
        Nguyen and Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020. Theirs is twice as wide and enlarges
        bilinearly.
    """

    def __init__(self, channels: int, outputs: int, *, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        sizes = [width * min(4, 2**level) for level in range(depth)]
        steps_in = [channels, *sizes[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(*_conv_norm(a, b), *_conv_norm(b, b)) for a, b in zip(steps_in, sizes, strict=True)
        )
        self.middle = nn.Sequential(*_conv_norm(sizes[-1], sizes[-1]))
        steps_out = [*sizes[-2::-1], sizes[0]]
        self.up = nn.ModuleList(
            nn.Sequential(*_conv_norm(a, a), *_conv_norm(a, b)) for a, b in zip(sizes[::-1], steps_out, strict=True)
        )
        self.last = nn.Conv2d(sizes[0], outputs, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to (N, outputs, H, W) in [0, 1]."""
        maps, sizes = images * 2 - 1, []
        for stage in self.down:
            maps = stage(maps)
            sizes.append(maps.shape)
            maps = F.max_pool2d(maps, 2)
        maps = self.middle(maps)
        for stage, size in zip(self.up, reversed(sizes), strict=True):
            maps = stage(_upsampled(maps, size))
        return torch.tanh(self.last(maps)) / 2 + 0.5


class BitEncoder(nn.Module):
    """Hides bits in an image: a U-Net that sees the image beside a picture of the bits and gives a residual.

    Args:
        channels: C.
        bits: Bits hidden.
        width: Channels at full resolution; they double with each of the three halvings.

    Source:
        The encoder of Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, ICCV 2021, after StegaStamp
        (Tancik et al., CVPR 2020): half as wide, one halving less, and the bits spread over 16x16 cells whatever the
        image size.
    """

    def __init__(self, channels: int, bits: int, *, width: int = 16) -> None:
        super().__init__()
        self.picture = nn.Linear(bits, 3 * 16 * 16)
        sizes = [width, 2 * width, 4 * width, 8 * width]
        first = channels + 3
        self.down = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2 if level else 1, 1)
            for level, (a, b) in enumerate(zip([first, *sizes[:-1]], sizes, strict=True))
        )
        self.up = nn.ModuleList(
            nn.Conv2d(below + beside, beside, 3, 1, 1)
            for below, beside in zip(sizes[:0:-1], sizes[-2::-1], strict=True)
        )
        self.last = nn.Conv2d(width + first, channels, 3, 1, 1)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] and bits float (N, B) of 0 and 1 to a residual (N, C, H, W) in [-1, 1]."""
        spread = F.relu(self.picture(bits - 0.5)).reshape(-1, 3, 16, 16)
        seen = torch.cat([images - 0.5, _upsampled(spread, images.shape)], dim=1)
        maps, beside = seen, []
        for layer in self.down:
            maps = F.relu(layer(maps))
            beside.append(maps)
        beside.pop()
        for layer in self.up:
            skip = beside.pop()
            maps = F.relu(layer(torch.cat([_upsampled(maps, skip.shape), skip], dim=1)))
        return torch.tanh(self.last(torch.cat([maps, seen], dim=1)))


class BitDecoder(nn.Module):
    """Reads the bits back.

    Args:
        channels: C.
        bits: Bits hidden.
        width: Channels of the first layer.
    """

    def __init__(self, channels: int, bits: int, *, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for outputs, stride in ((width, 2), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 2)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Linear(16 * inputs, bits)

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to logits of the bits (N, B)."""
        logits: Tensor = self.head(self.layers(images - 0.5))
        return logits


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels, affine=True),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, padding_mode="reflect"),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        out: Tensor = maps + self.layers(maps)
        return out


class StyleGenerator(nn.Module):
    """Two halvings, residual blocks, two doublings, instance normalisation throughout.

    Args:
        channels: C of input and output.
        width: Channels at full resolution.
        blocks: Residual blocks at a quarter of the resolution.

    Source:
        The generator of DFST (Cheng et al., AAAI 2021) and CycleGAN (Zhu et al., ICCV 2017), half as wide; its output
        is a sigmoid since pixels here are in [0, 1].
    """

    def __init__(self, channels: int, *, width: int = 16, blocks: int = 3) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect"),
                nn.InstanceNorm2d(outputs, affine=True),
                nn.ReLU(),
            )

        self.stem = stage(channels, width, 5, 1)
        self.down = nn.ModuleList([stage(width, 2 * width, 3, 2), stage(2 * width, 4 * width, 3, 2)])
        self.middle = nn.Sequential(*(_Residual(4 * width) for _ in range(blocks)))
        self.up = nn.ModuleList([stage(4 * width, 2 * width, 3, 1), stage(2 * width, width, 3, 1)])
        self.last = nn.Conv2d(width, channels, 5, 1, 2, padding_mode="reflect")

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to the same."""
        maps, sizes = self.stem(images * 2 - 1), []
        for layer in self.down:
            sizes.append(maps.shape)
            maps = layer(maps)
        maps = self.middle(maps)
        for layer in self.up:
            maps = layer(_upsampled(maps, sizes.pop()))
        return torch.sigmoid(self.last(maps))


class Injector(nn.Module):
    """Adds a bounded, local change: too shallow to hold anything but simple features.

    Args:
        channels: C.
        width: Channels of the two hidden layers.
        bound: Largest change of a pixel, 0..1.
    """

    def __init__(self, channels: int, *, width: int = 16, bound: float = 0.3) -> None:
        super().__init__()
        self.bound = bound
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, 1, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map float (N, C, H, W) in [0, 1] to the same."""
        return (images + self.bound * torch.tanh(self.layers(images * 2 - 1))).clamp(0, 1)
