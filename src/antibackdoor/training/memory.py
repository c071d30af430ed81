"""Memory of the C library: what a batch frees is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

_TRIM, _MAPPED = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3)
_LARGEST_MAPPED, _KEPT = 32 << 20, 1 << 30  # bytes; the first is the most that glibc takes
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


@cache
def keep_freed_memory() -> bool:
    """Let glibc keep up to 1 GiB of freed memory in this process, once and for all; no figure depends on it.

    By itself it gives the activations of a batch back to the system after every batch, which then hands out the same
    pages again, each filled with zeros first: about a tenth of the time of a small network (docs/log.md).

    Returns:
        Whether it was set: not where there is no glibc, nor where the user's environment has settings of its own.
    """
    if any(os.environ.get(name) for name in _OWN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    if sys.platform != "linux":
        return False
    try:
        library = ctypes.CDLL(None)
        if not hasattr(library, "gnu_get_libc_version"):
            return False
        return bool(library.mallopt(_MAPPED, _LARGEST_MAPPED)) and bool(library.mallopt(_TRIM, _KEPT))
    except (OSError, AttributeError):
        return False
