"""Exact copies in a set: many images that are one."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["repeated"]


def repeated(images: Tensor, labels: Tensor, held_out: Tensor | None = None) -> Tensor:
    """Return which images are exact copies of another one with the same label; one of each kind is the original.

    Copies are learned as one thing, as poison is, so what is fitted to a set should see each image once.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        held_out: bool (N,), images that are originals only where no other is; otherwise the first one is.

    Returns:
        bool (N,).
    """
    known: set[tuple[bytes, int]] = set()
    found = torch.zeros(len(labels), dtype=torch.bool)
    order = range(len(labels)) if held_out is None else held_out.int().argsort(stable=True).tolist()
    for row in order:
        key = (blake2b(images[row].numpy().tobytes(), digest_size=16).digest(), int(labels[row]))
        found[row] = key in known
        known.add(key)
    return found
