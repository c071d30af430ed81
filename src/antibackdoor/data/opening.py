"""Opening what an image is read from: a file, but never a pipe or a device."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["open_regular", "printable"]


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
