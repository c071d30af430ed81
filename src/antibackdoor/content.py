"""What tells an image, and a set, from every other: SHA-256 of its pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["content_hashes", "set_digest"]

_AT_ONCE = 4096  # images, so that a memory-mapped set is read in parts


def content_hashes(images: Tensor) -> NDArray[np.uint8]:
    """Return what tells each image: SHA-256 of "CxHxW", a line feed, and its pixels.

    Args:
        images: uint8 (N, C, H, W).

    Returns:
        uint8 (N, 32); equal images have equal rows, whatever they are called.
    """
    head = hashlib.sha256(f"{'x'.join(str(size) for size in images.shape[1:])}\n".encode())
    found = np.empty((len(images), head.digest_size), dtype=np.uint8)
    row = 0
    for part in images.split(_AT_ONCE) if len(images) else ():
        for image in part.contiguous().numpy():
            whole = head.copy()
            whole.update(image)
            found[row] = np.frombuffer(whole.digest(), dtype=np.uint8)
            row += 1
    return found


def set_digest(content: NDArray[np.uint8], labels: Sequence[str]) -> str:
    """Return what tells a set of labelled images: SHA-256 of its lines ``HASH  LABEL``, sorted as bytes.

    Order and names of the images do not matter; images, labels and how often each occurs do.

    Args:
        content: uint8 (N, 32), from :func:`content_hashes`.
        labels: N names of classes.

    Returns:
        64 hexadecimal digits.
    """
    lines = sorted(
        f"{bytes(row).hex()}  {label}\n".encode(errors="backslashreplace")
        for row, label in zip(content, labels, strict=True)
    )
    return hashlib.sha256(b"".join(lines)).hexdigest()
