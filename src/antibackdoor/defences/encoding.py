"""What a frozen encoder, or a trained network itself, sees in a set."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.data.batches import Batches
from antibackdoor.isolation import Network, penultimate
from antibackdoor.models.encoders import Encoder
from antibackdoor.training import Runtime
from antibackdoor.types import Encoded, ImageSet

__all__ = ["encode", "encoded_by", "features_by", "own_features", "probe"]

_PROBES, _SIDE = 4, 32


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


def probe(encoder: Encoder, runtime: Runtime) -> NDArray[np.float32]:
    """Return the encoder's features of four fixed pictures, float32 (4, D), which tell it from another."""
    content = hashlib.shake_256(b"antibackdoor probe").digest(_PROBES * 3 * 4 * 4)
    coarse = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(_PROBES, 3, 4, 4)
    pictures = coarse.repeat_interleave(_SIDE // 4, 2).repeat_interleave(_SIDE // 4, 3)
    names = tuple(map(str, range(_PROBES)))
    return encode(encoder, ImageSet(pictures, torch.zeros(_PROBES, dtype=torch.int64), ("probe",), names), runtime)


def encoded_by(
    encoder: Encoder, data: ImageSet, runtime: Runtime, features: NDArray[np.float32] | None = None
) -> Encoded:
    """Return what an encoder sees in a set; ``features``, float32 (N, D), if that is known already."""
    found = encode(encoder, data, runtime) if features is None else features
    return Encoded(encoder.name, found, probe(encoder, runtime))
