"""The one way to write a file, to lock one, and to read one back only if it is what was written.

A file is written under another name beside it, forced to the disk and moved into place: a kill or a power cut leaves
the old file or the new one, never a part. What is read back is compared with its SHA-256, which stands in
``checksums.sha256`` of its folder (in the format of ``sha256sum``, so ``sha256sum -c`` checks it as well) or, for
tensors, in the metadata of the file itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from antibackdoor.errors import RunExistsError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CHECKSUMS",
    "atomic_write",
    "atomic_write_bytes",
    "clear_partials",
    "locked",
    "pack_tensors",
    "read_checked",
    "read_checksums",
    "sha256_of",
    "unpack_tensors",
    "write_checksums",
    "writing",
]

CHECKSUMS = "checksums.sha256"
STALE_SECONDS = 3600.0  # a half-written file this old is what a kill left behind
_LONGEST_STEM = 50  # of the name of a half-written file, so that a name of 255 bytes can be written as well
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_UNSEALED = "0" * 64
_SEAL = "# these lines: "  # sha256sum takes it for a comment


def atomic_write(path: Path, write: Callable[[BinaryIO], object], *, what: str = "") -> None:
    """Write a file, whole or not at all; a device or a pipe (such as /dev/stdout) is written to as it is.

    Args:
        path: The file; its folder is made if it is not there.
        write: Writes the content to the open file.
        what: What the file is, for the message, such as "the checkpoint ".

    Raises:
        StorageError: A full disk, a folder in its place, or one that cannot be written.
    """
    partial: Path | None = None
    try:
        if path.is_dir():
            raise StorageError(f"cannot write {what}{path}: it is a folder")
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                write(stream)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name[:_LONGEST_STEM]}.{os.getpid()}.partial")
        with partial.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {what}{path}: {error.strerror or error}") from None
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, content: bytes, *, what: str = "") -> None:
    """Write bytes to a file, whole or not at all; see :func:`atomic_write`."""
    atomic_write(path, lambda stream: stream.write(content), what=what)


def clear_partials(folder: Path, *, older_than: float = STALE_SECONDS, of: str = "") -> None:
    """Remove the half-written files that killed processes left in a folder.

    Args:
        folder: The folder; need not be there.
        older_than: Age in seconds from which a file is taken as left behind; 0 where this process holds the folder.
        of: Name of the one file that they were to become; "" for any.
    """
    begins = f".{of[:_LONGEST_STEM]}." if of else "."
    for path in folder.glob(".*.partial"):
        if not path.name.startswith(begins):
            continue
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime >= older_than:
                path.unlink()


@contextlib.contextmanager
def locked(path: Path, *, busy: str | None = None, leave: bool = True) -> Iterator[None]:
    """Hold a lock for the block; a process that is killed loses it.

    Args:
        path: The lock's file; made, in a folder that is made as well.
        busy: The message where another process has it, with "{by}" for which one; None to wait for it.
        leave: Leave the lock's file there; otherwise it is removed at the end of the block.

    Raises:
        RunExistsError: Another process has it and ``busy`` was given.
        StorageError: The file cannot be made or locked.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    by = _holder(path)  # before: older versions of filelock empty the file of a lock that they do not get
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=-1 if busy is None else 0)
    except Timeout:
        raise RunExistsError((busy or "").format(by=_holder(path) or by)) from None
    except (OSError, NotImplementedError) as error:
        raise StorageError(f"cannot lock {path}: {getattr(error, 'strerror', None) or error}") from None
    try:
        with contextlib.suppress(OSError):  # for the message alone
            path.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        if not leave:  # While it is held: one who waits for a file that is gone tries again with a new one.
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against changing a file or a folder, in the block, into one line.

    Raises:
        StorageError: The system refused.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None


def sha256_of(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each file that ``checksums.sha256`` of a folder names; None where there is no such file.

    Raises:
        StorageError: It is damaged, or cannot be read.
    """
    path = folder / CHECKSUMS
    try:
        content = path.read_bytes()
        body, mark, seal = content.rpartition(_SEAL.encode())
        if not mark or seal != f"{sha256_of(body)}\n".encode():
            raise StorageError(f"{path} is damaged or was changed: its last line does not match the others")
        lines = body.decode("utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in found:
            raise StorageError(f"{path} is damaged: line {number} is no checksum")
        found[match[2]] = match[1]
    return found


def write_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    """Write ``checksums.sha256`` of a folder.

    Args:
        folder: The folder.
        checksums: SHA-256 in hexadecimal by the name of the file.

    Raises:
        StorageError: It cannot be written.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(checksums.items()))
    atomic_write_bytes(folder / CHECKSUMS, f"{lines}{_SEAL}{sha256_of(lines.encode())}\n".encode())


def read_checked(path: Path, checksums: Mapping[str, str] | None) -> bytes:
    """Read a file and compare it with its checksum.

    Args:
        path: The file.
        checksums: From :func:`read_checksums` of its folder; None where the files of a folder have none.

    Returns:
        Its content.

    Raises:
        StorageError: It is missing, cannot be read, has no checksum, or is not what was written.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise StorageError(f"{path} {reason}") from None
    if checksums is None:
        return content
    expected = checksums.get(path.name)
    if expected is None:
        raise StorageError(f"{path} has no checksum in {CHECKSUMS}, so it may not be what was written")
    if sha256_of(content) != expected:
        raise StorageError(f"{path} is damaged or was changed: it does not match its checksum in {CHECKSUMS}")
    return content


def pack_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """Return a safetensors file whose metadata hold ``header`` and, under ``sha256``, a checksum of all the rest.

    The same tensors and header give the same bytes.

    Args:
        tensors: By name; contiguous, on the CPU, none of them sharing memory.
        header: Further metadata.
    """
    from safetensors.torch import save

    content = save(dict(tensors), metadata={**header, "sha256": _UNSEALED})
    size = _header_size(content)
    values = json.loads(content[8 : 8 + size])
    # The library writes metadata in an order that changes from process to process.
    values["__metadata__"] = dict(sorted(values["__metadata__"].items()))
    text = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    body = content[8 + size :]
    digest = hashlib.sha256(struct.pack("<Q", len(text)) + text + body).hexdigest()
    sealed = text.replace(f'"sha256":"{_UNSEALED}"'.encode(), f'"sha256":"{digest}"'.encode())
    return struct.pack("<Q", len(text)) + sealed + body


def unpack_tensors(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of what :func:`pack_tensors` made, if not a bit of it has changed.

    Raises:
        StorageError: It is damaged, or has no checksum; the message is the reason alone.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        size = _header_size(content)
        text = content[8 : 8 + size]
        header = json.loads(text).get("__metadata__") or {}
        digest = header.pop("sha256", "")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise StorageError("it has no checksum")
        unsealed = text.replace(f'"sha256":"{digest}"'.encode(), f'"sha256":"{_UNSEALED}"'.encode())
        found = hashlib.sha256(content[:8])
        found.update(unsealed)
        found.update(memoryview(content)[8 + size :])
        if found.hexdigest() != digest:
            raise StorageError("it does not match its checksum")
        return header, load(content)
    except (SafetensorError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise StorageError(f"it is no whole safetensors file ({error})") from None


def _header_size(content: bytes) -> int:
    size = struct.unpack("<Q", content[:8])[0] if len(content) >= 8 else 0
    if not 0 < size <= len(content) - 8:
        raise ValueError("it is cut off")
    return int(size)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        holder = path.read_text(encoding="ascii").strip()
        return f" (process {holder})" if holder.isdecimal() else ""
    return ""


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk, where the system can do that for a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
