"""What a frozen encoder sees in a set."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.data.batches import Batches
from antibackdoor.models.encoders import Encoder
from antibackdoor.training import Runtime
from antibackdoor.types import ImageSet

__all__ = ["encode"]


def encode(encoder: Encoder, data: ImageSet, runtime: Runtime) -> NDArray[np.float32]:
    """Return the encoder's features of every image, float32 (N, D)."""
    batches = Batches(data, runtime.device, resident=runtime.device.type == "cpu")
    parts: list[Tensor] = []
    with runtime.autocast():
        for rows in torch.arange(len(data)).split(64 if runtime.device.type == "cpu" else 512):
            parts.append(encoder.features(batches.take(rows)[0].float().div(255)).cpu())
    found: NDArray[np.float32] = torch.cat(parts).numpy()
    return found
