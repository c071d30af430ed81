"""Random numbers that belong to a row of a set: the same whatever else is computed with it, in whatever order."""

from __future__ import annotations

import hashlib
from math import prod

import torch
from torch import Tensor

__all__ = ["uniform_of"]

_MASK = 0xFFFFFFFF
_PART = 1 << 22


def uniform_of(index: Tensor, seed: int, name: str, shape: tuple[int, ...] = ()) -> Tensor:
    """Return uniform numbers in [0, 1) for each row, a function of (row, seed, name) alone.

    Args:
        index: int64 (N,), rows of the set, at least 0.
        seed: Any integer.
        name: Tells independent draws for the same row apart, such as "cells".
        shape: Numbers for one row.

    Returns:
        float32 (N, *shape), on the device of ``index``.

    Source:
        A counter-based generator: two rounds of a 32-bit mixing function with constants of C. Wellons' hash-prospector
        over (row, place). Products stay below 2^63, so int64 never overflows. Not for cryptography.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    first, second = (int.from_bytes(digest[start : start + 4], "big") for start in (0, 4))
    count = prod(shape)
    places = torch.arange(count, device=index.device)[None]
    result = torch.empty((len(index), count), device=index.device)
    rows_at_once = max(1, _PART // max(1, count))
    for part, out in zip(index.split(rows_at_once), result.split(rows_at_once), strict=True):
        row = part[:, None]
        one, two = _mix((row + first) & _MASK), _mix((row + second) & _MASK)
        mixed = _mix((_mix((one + places) & _MASK) + two) & _MASK)
        out.copy_(mixed >> 8)
    return result.div_(1 << 24).reshape(len(index), *shape)


def _mix(value: Tensor) -> Tensor:
    value = ((value ^ (value >> 16)) * 0x21F0AAAD) & _MASK
    value = ((value ^ (value >> 15)) * 0x735A2D97) & _MASK
    return value ^ (value >> 15)
