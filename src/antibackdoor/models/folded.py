"""EfficientNet-Lite0 as an encoder: nothing but convolutions, their batch norms folded in."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ["FoldedLite0"]

_SIX = 6.0
# What oneDNN's convolution does to its result while that is in the cache; torch's compiler calls the same operator.
_CUT: tuple[str, list[float], str] = ("hardtanh", [0.0, _SIX], "")
_AS_IT_IS: tuple[str, list[float], str] = ("none", [], "")


class _Convolution(NamedTuple):
    weight: Tensor
    bias: Tensor
    stride: int
    groups: int
    pad: tuple[int, int, int, int]  # left, right, top, bottom
    cut: bool  # its values are cut at 0 and 6


class FoldedLite0:
    """The convolutions of an EfficientNet-Lite0: images to its last feature map.

    The same function as ``extract_features`` of the network in evaluation mode, up to rounding: batch norms, which are
    constant then, are folded into the weights, padding that is the same on both sides is left to the convolution, and
    so is cutting at 0 and 6, which is faster on a processor. It computes in the type of the autocast that it is called
    under, else in float32.

    Args:
        network: Of the package ``efficientnet-lite-pytorch``; it is left as it is.
        device: Where it computes.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device = device
        self._fuses = device.type == "cpu" and torch.backends.mkldnn.is_available()
        self._blocks = {torch.float32: self._folded(network)}

    def __call__(self, images: Tensor) -> Tensor:
        """Return the feature map, (B, 1280, side / 32, side / 32).

        Args:
            images: float (B, 3, side, side), normalised.
        """
        kind = self._device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if dtype not in self._blocks:
            self._blocks[dtype] = [[_cast(one, dtype) for one in block] for block in self._blocks[torch.float32]]
        values = images.to(dtype)
        for block in self._blocks[dtype]:
            inner = values
            for one in block:
                inner = self._convolve(inner, one)
            values = inner.add_(values) if len(block) > 1 and inner.shape == values.shape else inner
        return values

    def _folded(self, network: Any) -> list[list[_Convolution]]:
        """Return the convolutions block by block; stem and head are blocks of one."""
        folded = [[self._fold(network._conv_stem, network._bn0, cut=True)]]
        for block in network._blocks:
            expand = [self._fold(block._expand_conv, block._bn0, cut=True)] if hasattr(block, "_expand_conv") else []
            depthwise = self._fold(block._depthwise_conv, block._bn1, cut=True)
            folded.append([*expand, depthwise, self._fold(block._project_conv, block._bn2, cut=False)])
        return [*folded, [self._fold(network._conv_head, network._bn1, cut=True)]]

    def _fold(self, convolution: Any, norm: Any, *, cut: bool) -> _Convolution:
        folded = fuse_conv_bn_weights(
            *(convolution.weight, convolution.bias, norm.running_mean, norm.running_var),
            *(norm.eps, norm.weight, norm.bias),
        )
        weight, bias = (value.detach() for value in folded)
        weight = weight.to(self._device, memory_format=torch.channels_last)
        padded = convolution.static_padding
        pad: Any = tuple(padded.padding) if isinstance(padded, nn.ZeroPad2d) else (0, 0, 0, 0)
        return _Convolution(weight, bias.to(self._device), convolution.stride[0], convolution.groups, pad, cut)

    def _convolve(self, images: Tensor, one: _Convolution) -> Tensor:
        left, right, top, bottom = one.pad
        padding = [top, left]
        if (left, top) != (right, bottom):
            images, padding = F.pad(images, one.pad), [0, 0]
        # What a processor has no instructions for, the operator refuses; the convolution does it all the same, slowly.
        if self._fuses and (images.dtype == torch.float32 or _has(images.dtype)):
            after = _CUT if one.cut else _AS_IT_IS
            stride = [one.stride, one.stride]
            found: Tensor = torch.ops.mkldnn._convolution_pointwise(
                images, one.weight, one.bias, padding, stride, [1, 1], one.groups, *after
            )
            return found
        found = F.conv2d(images, one.weight, one.bias, one.stride, padding, groups=one.groups)
        return found.clamp_(0, _SIX) if one.cut else found


def _has(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes in a half type on this processor."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())


def _cast(one: _Convolution, dtype: torch.dtype) -> _Convolution:
    return one._replace(weight=one.weight.to(dtype), bias=one.bias.to(dtype))
