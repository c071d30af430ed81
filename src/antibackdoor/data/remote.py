"""Addresses (``s3://``, ``gs://``, ``https://``) through fsspec: files are copied to this machine and read from there.

A copy lies below the cache, at the path that it has at its address, so that names and ids are those of the source. It
is written under a temporary name and moved into place; a file that is there already is not fetched again as long as the
server names the same size and the same mark of its content (ETag, checksum or time).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from antibackdoor.data.cache import default_cache_dir
from antibackdoor.data.parallel import map_chunks
from antibackdoor.errors import DataError, StorageError, one_line
from antibackdoor.files import atomic_write_bytes
from antibackdoor.progress import Progress

__all__ = ["SCHEMES", "Copies", "is_address", "server_of", "spoken_of"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
SCHEMES = ("abfs", "az", "gcs", "gs", "http", "https", "s3")
_MARKS = ("etag", "content-md5", "digest", "md5hash", "crc32c", "lastmodified", "last-modified", "mtime", "updated")
_TRIES, _KNOWN, _PARTIAL = 3, "known.json", ".partial"
# What the own disk says, whoever passes it on.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Files of a folder that are fetched: more is a mistake in the address.
_MOST = 10_000_000


def is_address(source: str) -> bool:
    """Say whether a source is an address such as ``s3://bucket/set`` and no path of this machine."""
    return bool(_ADDRESS.match(source))


def server_of(address: str) -> tuple[str, str]:
    """Part an address into that of its server or bucket and the path there."""
    scheme, _, rest = address.partition("://")
    server, _, path = rest.partition("/")
    return f"{scheme}://{server}", path


class Copies:
    """Copies of what lies below one address; nothing is fetched before it is asked for.

    Args:
        address: Of a folder.
        cache_dir: The cache; the default one if None.

    Raises:
        DataError: An address that is not read here, or a package that it needs is not installed.
    """

    def __init__(self, address: str, cache_dir: Path | None = None) -> None:
        scheme, _, rest = address.partition("://")
        if scheme.lower() not in SCHEMES or "::" in address:
            raise DataError(f"{address}: not an address that is read; known are {', '.join(SCHEMES)}")
        if not rest.strip("/"):
            raise DataError(f"{address}: names no server or bucket")
        self.address = address.rstrip("/")
        try:
            import fsspec

            system, root = fsspec.core.url_to_fs(self.address, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise DataError(
                f"{address}: reading addresses needs packages that do not import here ({one_line(str(error))}): pip "
                "install 'antibackdoor[remote]'"
            ) from None
        name = hashlib.sha256(self.address.encode()).hexdigest()[:32]
        self._folder = (cache_dir or default_cache_dir()) / "remote" / name
        self._system: Any = system
        self._root = root.rstrip("/")
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            kept = json.loads((self._folder / _KNOWN).read_text("utf-8"))
            self._known = {str(key): str(value) for key, value in kept.items()}

    def fetch(self, files: Sequence[str], progress: Progress, *, missing_ok: bool = False) -> None:
        """Copy files, as far as they are not here.

        Args:
            files: POSIX paths below the address.
            progress: Shows the work.
            missing_ok: A file that is not there is left out; otherwise it is an error.

        Raises:
            DataError: A file is not there, cannot be reached or comes incomplete.
            StorageError: The cache cannot be written.
        """

        def one(file: str) -> None:
            try:
                self._fetch(file)
            except FileNotFoundError:
                if not missing_ok:
                    raise DataError(f"{self.address}/{file}: no such file there") from None
                (self.files / file).unlink(missing_ok=True)

        with progress.bar("fetching", len(files), "files") as bar:
            try:
                for done in map_chunks(one, files, chunk=4):
                    bar.advance(len(done))
            finally:
                self._remember()

    def find(self) -> list[str]:
        """Return the paths of all files below the address, sorted.

        Raises:
            DataError: It cannot be reached, or there is nothing.
        """
        if self._linked_by_pages:
            found = self._linked()
        else:
            with self._reaching(""):
                found = list(self._system.find(self._root))
        files = sorted({below for path in found if (below := self._below(path))})
        if not files:
            raise DataError(f"{self.address}: no such file or folder there, or an empty one")
        if len(files) > _MOST:
            raise DataError(f"{self.address}: {len(files):,} files; at most {_MOST:,} are read")
        return files

    def _linked(self) -> list[str]:
        """Return the files that pages list, one page a folder; fsspec's own way leaves out folders that fail."""
        found: list[str] = []
        pending = [self._root]
        while pending:
            folder = pending.pop()
            try:
                with self._reaching(self._below(folder)):
                    entries = self._system.ls(folder, detail=True)
            except FileNotFoundError:
                if folder == self._root:
                    return []
                raise DataError(f"{folder}: is listed, but not there") from None
            for entry in entries:
                path = str(entry["name"])
                if not path.startswith(folder.rstrip("/") + "/") or path.rstrip("/") == folder:
                    continue
                if entry["type"] == "directory":
                    pending.append(path.rstrip("/"))
                else:
                    found.append(path)
            if len(found) > _MOST:
                break
        return found

    def matching(self, pattern: str) -> list[str]:
        """Return the paths of the files that a pattern with ``*`` stands for, sorted.

        Raises:
            DataError: It cannot be reached.
        """
        with self._reaching(pattern):
            found = self._system.glob(f"{self._root}/{pattern}")
        return sorted(self._below(path) for path in found)

    def keep_only(self, files: Sequence[str]) -> None:
        """Delete copies of files that are not there any more.

        Args:
            files: Of all that are there, from :meth:`find`.
        """
        wanted = {*files}
        for path in [path for path in self.files.rglob("*") if path.is_file()]:
            # Another process may be writing one.
            if path.suffix != _PARTIAL and path.relative_to(self.files).as_posix() not in wanted:
                path.unlink(missing_ok=True)

    @property
    def files(self) -> Path:
        """The folder of the copies, at the paths that they have below the address."""
        return self._folder / "files"

    @property
    def _linked_by_pages(self) -> bool:
        return self.address.lower().startswith("http")

    def _below(self, path: str) -> str:
        """Return a path of the file system as one below the address."""
        plain = path.removeprefix(self._root).lstrip("/")
        if self._linked_by_pages:
            plain = unquote(plain.partition("?")[0])
        parts = PurePosixPath(plain).parts
        if ".." in parts:
            raise DataError(f"{self.address}: lists {path!r}, which leads out of it")
        return "/".join(parts)

    def _info(self, file: str) -> dict[str, Any]:
        with self._reaching(file):
            return dict(self._system.info(f"{self._root}/{file}"))

    def _fetch(self, file: str) -> None:
        parts = PurePosixPath(file).parts
        if not parts or ".." in parts or "\0" in file or parts[0] == "/":
            raise DataError(f"{self.address}: {file!r} does not lie below it")
        info, target = self._info(file), self.files / Path(*parts)
        size, mark = info.get("size"), _mark(info)
        with self._lock:
            known = mark and self._known.get(file) == f"{size} {mark}"
        if known and target.is_file() and target.stat().st_size == size:
            return
        partial = target.with_name(f".{secrets.token_hex(8)}{_PARTIAL}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for left in reversed(range(_TRIES)):
                try:
                    with self._reaching(file):
                        self._system.get_file(f"{self._root}/{file}", str(partial))
                    held = partial.stat().st_size
                    if size is not None and held != size:
                        raise DataError(f"{self.address}/{file}: {held:,} of {size:,} bytes came")
                    break
                except DataError:
                    if not left:
                        raise
                    time.sleep((_TRIES - left) / 2)
            os.replace(partial, target)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be written: {error.strerror or error}") from None
        finally:
            partial.unlink(missing_ok=True)
        with self._lock:
            self._known[file] = f"{size} {mark}"

    def _remember(self) -> None:
        with self._lock:
            known = dict(self._known)
        if not known:
            return
        with contextlib.suppress(OSError, StorageError):  # without it files are fetched again
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self._folder / _KNOWN, json.dumps(known).encode())

    @contextlib.contextmanager
    def _reaching(self, file: str) -> Iterator[None]:
        """Turn what clients raise into one line; a file that is not there stays FileNotFoundError."""
        try:
            yield
        except FileNotFoundError:
            raise
        except (DataError, StorageError, KeyboardInterrupt):
            raise
        except Exception as error:  # noqa: BLE001 - every client has errors of its own
            if getattr(error, "status", None) == 404:
                raise FileNotFoundError(file) from None
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            reason = one_line(str(error)) or type(error).__name__
            raise DataError(f"{self.address}/{file}".rstrip("/") + f": cannot be reached: {reason}") from None


@contextlib.contextmanager
def spoken_of(folder: Path, address: str) -> Iterator[None]:
    """Say the address in messages about its copies."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(str(folder), address)) from None


def _mark(info: dict[str, Any]) -> str:
    """Return what a server says of the content of a file, or nothing."""
    marks = {key.casefold(): str(value) for key, value in info.items() if value}
    return " ".join(f"{key}={marks[key]}" for key in _MARKS if key in marks)
