"""What is kept of an image: what an encoder sees in it and what it shows, each in few whole numbers.

The map is the same for every set, on every machine: sums over images are exact then, in any order.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.models import size_within

__all__ = ["DIMENSIONS", "SCALE", "contents_of", "pictures_of"]

# Numbers an image and view; a step of them is so much of the image's unit length.
DIMENSIONS, SCALE = 256, 32767.0
# Side in pixels of the pictures; spatial frequency, in half waves an image, up to which they are whitened.
_SIDE, _FLAT = 32, 16
_AT_A_TIME = 1024


def contents_of(features: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return what an encoder sees in images, int16 (N, 256).

    Args:
        features: float32 (N, D).

    Source:
        Random projection by signs: Achlioptas (2003).
    """
    parts = [_kept(features[rows], b"contents") for rows in _parts(len(features))]
    return np.concatenate([np.empty((0, DIMENSIONS), dtype=np.int16), *parts])


def pictures_of(images: Tensor) -> NDArray[np.int16]:
    """Return what images show, int16 (N, 256): projections of them, whitened by what natural images vary in.

    Args:
        images: uint8 (N, C, H, W).

    Source:
        The amplitudes of natural images fall with the frequency: Field (1987). Projection as in :func:`contents_of`.
    """
    size = size_within(images.shape[2], images.shape[3], _SIDE)
    parts = []
    for rows in _parts(len(images)):
        pixels = images[rows].float().div(255)
        if size is not None:
            pixels = torch.nn.functional.interpolate(pixels, size, mode="area")
        values = pixels.double().numpy()
        tall, wide = (_cosines(side) for side in values.shape[2:])
        spectrum = tall @ values @ wide.T
        rising = np.hypot(*np.meshgrid(*(np.arange(side) for side in values.shape[2:]), indexing="ij"))
        parts.append(_kept((spectrum * np.minimum(rising, _FLAT)).reshape(len(values), -1), b"pictures"))
    return np.concatenate([np.empty((0, DIMENSIONS), dtype=np.int16), *parts])


def _parts(count: int) -> list[slice]:
    return [slice(first, first + _AT_A_TIME) for first in range(0, count, _AT_A_TIME)]


def _kept(values: NDArray[np.float32] | NDArray[np.float64], name: bytes) -> NDArray[np.int16]:
    """Return rows (n, D) brought to unit length and projected, in whole steps."""
    found = values.astype(np.float64)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    projected = found @ _signs(found.shape[1], name) / np.sqrt(DIMENSIONS)
    kept: NDArray[np.int16] = np.clip(np.rint(projected * SCALE), -SCALE, SCALE).astype(np.int16)
    return kept


@lru_cache(maxsize=4)
def _signs(size: int, name: bytes) -> NDArray[np.float64]:
    """Return signs, float64 (size, 256), from a hash and not from a generator, whose stream may change."""
    stream = hashlib.shake_256(b"antibackdoor " + name).digest(size * DIMENSIONS // 8)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8)).reshape(size, DIMENSIONS)
    return bits.astype(np.float64) * 2 - 1


@lru_cache(maxsize=4)
def _cosines(size: int) -> NDArray[np.float64]:
    """Return the orthonormal cosine transform, float64 (size, size), a frequency a row."""
    places = np.arange(size)
    found: NDArray[np.float64] = np.cos(np.pi * (2 * places + 1) * places[:, None] / (2 * size)) * np.sqrt(2 / size)
    found[0] /= np.sqrt(2)
    return found
