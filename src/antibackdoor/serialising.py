"""What the files of a run are made of: text, JSON, arrays and names, to bytes and back, without ever unpickling."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from antibackdoor.errors import StorageError
from antibackdoor.files import atomic_write_bytes, read_checked
from antibackdoor.types import Json

__all__ = [
    "as_json",
    "encode",
    "pack_arrays",
    "pack_names",
    "parse_json",
    "read_arrays",
    "read_json",
    "unpack_names",
    "write_json",
    "write_text",
]


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        StorageError: It cannot be written.
    """
    atomic_write_bytes(path, encode(text))


def write_json(path: Path, values: object) -> None:
    """Write a JSON file, whole or not at all; see :func:`write_text`."""
    write_text(path, as_json(values))


def as_json(values: object) -> str:
    """Return values as the text of a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def encode(text: str) -> bytes:
    """Return text as UTF-8; what is none, as from a file system, is written as its escapes."""
    return text.encode("utf-8", errors="backslashreplace")


def read_json(path: Path) -> dict[str, Json]:
    """Read a JSON file that holds an object.

    Raises:
        StorageError: It is missing or damaged.
    """
    try:
        return parse_json(path, path.read_bytes())
    except FileNotFoundError:
        raise StorageError(f"{path} is missing, so the run cannot be continued; give another --out") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(path: Path, content: bytes) -> dict[str, Json]:
    """Return the object that JSON holds.

    Args:
        path: For messages.
        content: The text, UTF-8.

    Raises:
        StorageError: It is damaged, or no object.
    """
    try:
        values = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged: {error}") from None
    if not isinstance(values, dict):
        raise StorageError(f"{path} is damaged: it holds no settings")
    return values


def pack_arrays(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """Return arrays as the content of a .npz file; no compression, nothing pickled."""
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    return content.getvalue()


def read_arrays(path: Path, checksums: Mapping[str, str] | None) -> dict[str, np.ndarray[Any, Any]]:
    """Read a .npz file, without ever unpickling.

    Args:
        path: The file.
        checksums: SHA-256 by name of the file; None where a run has none.

    Raises:
        StorageError: It is missing, damaged, or not what its checksum says.
    """
    content = read_checked(path, checksums)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # noqa: BLE001 - a damaged file makes NumPy and zipfile raise nearly anything
        raise StorageError(f"{path} is damaged: {error or type(error).__name__}") from None


def pack_names(ids: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return names as uint8 (B,), for a .npz file."""
    # A JSON list as bytes: a numpy string array would give every id the length of the longest.
    return np.frombuffer(json.dumps(ids).encode(), dtype=np.uint8)


def unpack_names(packed: np.ndarray[Any, Any]) -> tuple[str, ...]:
    """Return what :func:`pack_names` packed.

    Raises:
        ValueError: It holds no names.
    """
    names = json.loads(packed.tobytes())
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("ids are no names")
    return tuple(names)
