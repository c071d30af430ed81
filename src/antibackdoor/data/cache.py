"""Decoded images on disk, found again by the content of the files they came from.

An entry is one folder named by its key: ``images.u8``, the raw uint8 pixels (N, C, H, W), and ``meta.json``.
It is written under a temporary name and moved into place, so that no kill leaves half an entry; a damaged one
is rebuilt. Before a new entry is written, the least recently used ones are deleted as far as the cache would exceed
$ANTIBACKDOOR_CACHE_GB GiB (20 by default), but none that was used in the last hour: a run may still read it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from antibackdoor.data.opening import open_regular
from antibackdoor.data.parallel import map_chunks
from antibackdoor.errors import ConfigError, StorageError
from antibackdoor.progress import Progress

__all__ = ["Meta", "content_key", "default_cache_dir", "fetch", "store"]

FORMAT = 2
IMAGES, META = "images.u8", "meta.json"
BUILDING = ".building-"
KEY = re.compile("[0-9a-f]{64}")
STALE_SECONDS = 24 * 3600  # a half-built entry this old is what a kill left behind
KEPT_SECONDS = 3600  # an entry used this recently is not deleted for want of space
LIMIT, LIMIT_GIB = "ANTIBACKDOOR_CACHE_GB", 20.0
UNREADABLE = b"unreadable"


@dataclass(frozen=True)
class Meta:
    """What an entry knows besides the pixels: the fields of an ImageSet, in plain values.

    Attributes:
        shape: N, C, H, W.
        labels: N class indices.
        classes: K names.
        ids: N names.
        skipped: Files left out.
        white: The value that became 255, in files with 16 bits of grey.
    """

    shape: tuple[int, int, int, int]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    skipped: tuple[str, ...]
    white: int


def default_cache_dir() -> Path:
    """Return $ANTIBACKDOOR_CACHE, else $XDG_CACHE_HOME/antibackdoor, else ~/.cache/antibackdoor."""
    if own := os.environ.get("ANTIBACKDOOR_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "antibackdoor"


def content_key(root: Path, files: Sequence[str], settings: str, progress: Progress) -> str:
    """Return the name of the entry for these files: a hash over paths and contents, never over times.

    Args:
        root: The folder that the files lie below.
        files: Paths below it, sorted.
        settings: Whatever else decides the result, in words.
        progress: Shows the reading.
    """

    def digest(file: str) -> bytes:
        try:
            with open_regular(os.path.join(root, file)) as stream:
                return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32)).digest()
        except OSError:
            return UNREADABLE  # the decoder will say what is wrong with it

    total = hashlib.sha256(f"{FORMAT}\0{settings}\0{len(files)}\0".encode())
    done = 0
    with progress.bar("comparing with the cache", len(files), "images") as bar:
        for digests in map_chunks(digest, files):
            for file, content in zip(files[done : done + len(digests)], digests, strict=True):
                total.update(os.fsencode(file) + b"\0" + content)
            done += len(digests)
            bar.advance(len(digests))
    return total.hexdigest()


def fetch(cache_dir: Path, key: str) -> tuple[Meta, Tensor] | None:
    """Open an entry.

    Args:
        cache_dir: The cache.
        key: From :func:`content_key`.

    Returns:
        What it knows and its pixels, uint8 (N, C, H, W), mapped from the file and not to be written to; None
        where there is no such entry or it is damaged.
    """
    folder = cache_dir / key
    try:
        meta = _parse(json.loads((folder / META).read_text(encoding="utf-8")))
        size = prod(meta.shape)
        if (folder / IMAGES).stat().st_size != size:
            return None
        # A private mapping: torch warns of read-only memory, and a stray write would stay in this process.
        images = torch.from_file(str(folder / IMAGES), shared=False, size=size, dtype=torch.uint8)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    with contextlib.suppress(OSError):  # a cache that may only be read
        os.utime(folder)
    return meta, images.view(meta.shape)


def store(cache_dir: Path, key: str, expected_bytes: int, write: Callable[[BinaryIO], Meta]) -> None:
    """Make an entry.

    Args:
        cache_dir: The cache; made where it is missing.
        key: From :func:`content_key`.
        expected_bytes: What the pixels will take; refused before the work where the disk has not that much
            left.
        write: Writes the pixels to the open file and returns the rest. What it raises passes through.

    Raises:
        ConfigError: $ANTIBACKDOOR_CACHE_GB is not a size.
        StorageError: Full disk, or a cache that cannot be written.
    """
    limit = _limit_bytes()
    temporary: Path | None = None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        _remove_stale(cache_dir)
        _prune(cache_dir, limit - expected_bytes)
        if shutil.disk_usage(cache_dir).free < expected_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary = cache_dir / f"{BUILDING}{secrets.token_hex(8)}"
        temporary.mkdir()
        with (temporary / IMAGES).open("wb") as stream:
            meta = write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        text = json.dumps({"format": FORMAT, **asdict(meta)})
        (temporary / META).write_text(text, encoding="utf-8")
        _move(temporary, cache_dir / key)
    except OSError as error:
        raise _storage_error(cache_dir, expected_bytes, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _move(temporary: Path, target: Path) -> None:
    if target.exists() and fetch(target.parent, target.name) is None:
        shutil.rmtree(target)
    try:
        temporary.rename(target)
    except OSError:
        if fetch(target.parent, target.name) is None:  # else another process has just built the same
            raise


def _remove_stale(cache_dir: Path) -> None:
    for left in cache_dir.glob(f"{BUILDING}*"):
        with contextlib.suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def _limit_bytes() -> float:
    given = os.environ.get(LIMIT) or str(LIMIT_GIB)
    try:
        size = float(given)
    except ValueError:
        size = math.nan
    if not size >= 0:
        raise ConfigError(f"{LIMIT}: must be a size in GiB of at least 0, got {given!r}")
    return size * 2**30


def _prune(cache_dir: Path, limit: float) -> None:
    """Delete the least recently used entries until the rest takes at most ``limit`` bytes, but no recent one."""
    entries = []
    for folder in cache_dir.iterdir():
        with contextlib.suppress(OSError):  # no entry of ours, or another process has just deleted it
            if KEY.fullmatch(folder.name):
                size = sum((folder / name).stat().st_size for name in (IMAGES, META))
                entries.append((folder.stat().st_mtime, size, folder))
    total = sum(size for _, size, _ in entries)
    for used, size, folder in sorted(entries):
        if total <= limit or time.time() - used < KEPT_SECONDS:
            return
        condemned = cache_dir / f"{BUILDING}{secrets.token_hex(8)}"
        with contextlib.suppress(OSError):
            folder.rename(condemned)  # whole or not at all: nobody finds half an entry
            shutil.rmtree(condemned, ignore_errors=True)
        total -= size


def _parse(content: dict[str, object]) -> Meta:
    """Check a meta.json as far as a damaged one could mislead; raise ValueError, TypeError or KeyError."""

    def strings(name: str) -> tuple[str, ...]:
        values = content[name]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise TypeError(name)
        return tuple(values)

    def integers(name: str) -> tuple[int, ...]:
        values = content[name]
        if not isinstance(values, list) or not all(type(value) is int and value >= 0 for value in values):
            raise TypeError(name)
        return tuple(values)

    white = content["white"]
    if type(white) is not int or white < 1:
        raise TypeError("white")
    count, channels, height, width = integers("shape")
    meta = Meta(
        shape=(count, channels, height, width),
        labels=integers("labels"),
        classes=strings("classes"),
        ids=strings("ids"),
        skipped=strings("skipped"),
        white=white,
    )
    complete = len(meta.labels) == len(meta.ids) == count and max(meta.labels) < len(meta.classes)
    if content["format"] != FORMAT or prod(meta.shape) == 0 or not complete:
        raise ValueError(META)
    return meta


def _storage_error(cache_dir: Path, expected_bytes: int, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left for the decoded images: {cache_dir} needs {expected_bytes / 1e6:,.0f} MB. "
            "Free some, or set ANTIBACKDOOR_CACHE to a folder on another disk"
        )
    return StorageError(
        f"cannot write the image cache {cache_dir}: {error.strerror or error}. "
        "Set ANTIBACKDOOR_CACHE to a folder that can be written"
    )
