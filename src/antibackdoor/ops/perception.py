"""How alike images look, on float (N, C, H, W) in [0, 1]; gradients flow through all of it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gram", "per_image_distance", "round_through", "ssim", "total_variation"]


def round_through(images: Tensor) -> Tensor:
    """Round to the 256 levels that files hold and clip, while gradients pass as if nothing was rounded.

    Args:
        images: float (N, C, H, W), may lie outside [0, 1].

    Returns:
        float (N, C, H, W), multiples of 1/255 in [0, 1].

    Source:
        The straight-through estimator of Bengio et al., 2013.
    """
    clipped = images.clamp(0, 1)
    return clipped + (clipped.mul(255).round().div(255) - clipped).detach()


def per_image_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the root of the mean squared difference of each pair, (N, C, H, W) twice -> (N,)."""
    # The small constant keeps the root's gradient finite for equal images.
    return (first - second).square().flatten(1).mean(1).add(1e-12).sqrt()


def ssim(first: Tensor, second: Tensor, *, window: int = 7) -> Tensor:
    """Return the structural similarity of each pair, at most 1.

    Args:
        first: float (N, C, H, W) in [0, 1].
        second: The same shape.
        window: Side of the square window in pixels, uniform weights; no more than fits the images.

    Returns:
        float (N,).

    Source:
        Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity, 2004, with their
        constants 0.01 and 0.03 and a uniform window.
    """
    side = min(window, first.shape[2], first.shape[3])

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, side, 1)

    mean_1, mean_2 = mean(first), mean(second)
    var_1, var_2 = mean(first * first) - mean_1 * mean_1, mean(second * second) - mean_2 * mean_2
    covariance = mean(first * second) - mean_1 * mean_2
    low, contrast = 0.01**2, 0.03**2
    similar = (2 * mean_1 * mean_2 + low) * (2 * covariance + contrast)
    return (similar / ((mean_1 * mean_1 + mean_2 * mean_2 + low) * (var_1 + var_2 + contrast))).flatten(1).mean(1)


def gram(maps: Tensor) -> Tensor:
    """Return the mean product of every two channels, float (N, C, H, W) -> (N, C, C).

    Source:
        Gatys et al., Image Style Transfer Using Convolutional Neural Networks, CVPR 2016.
    """
    flat = maps.flatten(2)
    return torch.bmm(flat, flat.transpose(1, 2)) / flat.shape[2]


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels, float (N, C, H, W) -> scalar."""
    return (images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()) / 2
