"""Exact copies in a set: many images that are one."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["repeated"]


def repeated(images: Tensor, labels: Tensor) -> Tensor:
    """Return which images are exact copies of an earlier one with the same label.

    Copies are learned as one thing, as poison is, so what is fitted to a set should see each image once.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).

    Returns:
        bool (N,).
    """
    known: set[tuple[bytes, int]] = set()
    found = torch.zeros(len(labels), dtype=torch.bool)
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        key = (blake2b(image.numpy().tobytes(), digest_size=16).digest(), label)
        found[row] = key in known
        known.add(key)
    return found
