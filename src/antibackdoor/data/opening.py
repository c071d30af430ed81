"""Opening what an image is read from: a file, but never a pipe or a device."""

from __future__ import annotations

import errno
import io
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, TypeAlias

__all__ = ["Payload", "Piece", "open_payload", "open_regular", "printable"]

LARGEST = 2**28  # bytes of an image inside another file, which is held in memory


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file.

    Attributes:
        path: The file.
        offset: Of the first byte.
        size: How many.
    """

    path: Path
    offset: int
    size: int


Payload: TypeAlias = "Path | Piece | bytes"


def open_payload(payload: Payload) -> BinaryIO:
    """Open what an image is decoded from.

    Args:
        payload: A file, a piece of one, or the bytes themselves.

    Raises:
        OSError: It cannot be read, is not all there, or is larger than 256 MiB and not a file of its own.
    """
    if isinstance(payload, Path):
        return open_regular(payload)
    size = len(payload) if isinstance(payload, bytes) else payload.size
    if size > LARGEST:
        raise OSError(errno.EFBIG, f"{size:,} bytes; more than {LARGEST:,} are not read from inside another file")
    if isinstance(payload, bytes):
        if not payload:
            raise OSError(errno.EINVAL, "no bytes of an image; a path alone is not followed")
        return io.BytesIO(payload)
    with open_regular(payload.path) as file:
        file.seek(payload.offset)
        held = file.read(size)
    if len(held) != size:
        raise OSError(errno.EINVAL, f"the file ends {size - len(held):,} bytes before the image does")
    return io.BytesIO(held)


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file to read bytes from it.

    Args:
        path: The file; a link to one will do.

    Raises:
        OSError: It cannot be opened, or is a folder, a pipe, a socket or a device, which might never end.
    """
    # Without O_NONBLOCK opening a pipe waits for somebody to write into it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError as error:  # a NUL character, from a table
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
            raise OSError(errno.EINVAL, f"not a file but {kind}", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def printable(path: str) -> str:
    """Escape what is not valid UTF-8 in a file name, so that an id can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
