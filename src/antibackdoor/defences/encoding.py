"""What a frozen encoder, or a trained network itself, sees in a set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.isolation import Network, penultimate
from antibackdoor.models.encoders import Encoder
from antibackdoor.training import Runtime
from antibackdoor.types import ImageSet

__all__ = ["encode", "features_by", "own_features"]


def encode(encoder: Encoder, data: ImageSet, runtime: Runtime) -> NDArray[np.float32]:
    """Return the encoder's features of every image, float32 (N, D)."""
    batches = Batches(data, runtime.device, resident=runtime.device.type == "cpu")
    parts: list[Tensor] = []
    with runtime.autocast():
        for rows in torch.arange(len(data)).split(64 if runtime.device.type == "cpu" else 512):
            parts.append(encoder.features(batches.take(rows)[0].float().div(255)).cpu())
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def own_features(model: nn.Module, data: ImageSet, runtime: Runtime) -> NDArray[np.float32]:
    """Return a network's penultimate features of every image, float32 (N, D)."""
    network = Network(model, data, runtime)
    found: NDArray[np.float32] = network.measure([penultimate(network)])[0].numpy()
    return found


def features_by(encoder: Encoder | None, model: nn.Module, data: ImageSet, runtime: Runtime) -> NDArray[np.float32]:
    """Return features of images, float32 (N, D): of the encoder, or of the network where there is none."""
    return own_features(model, data, runtime) if encoder is None else encode(encoder, data, runtime)
