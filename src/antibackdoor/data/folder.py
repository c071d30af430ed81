"""A folder with one subfolder a class to an image set: scan, choose a size, decode once, cache."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeVar

import torch

from antibackdoor.data import cache
from antibackdoor.data.arrays import MIN_SIDE, check_trainable
from antibackdoor.data.decode import BadImageError, Header, decode, inspect, quiet
from antibackdoor.data.parallel import map_chunks
from antibackdoor.errors import DataError, StorageError
from antibackdoor.progress import Progress
from antibackdoor.types import ImageSet

__all__ = ["EXTENSIONS", "FolderReader", "Found", "holds_class_folders", "scan"]

EXTENSIONS = ("bmp", "jpeg", "jpg", "pgm", "png", "ppm", "webp")
SIDES = (32, 48, 64, 96, 128)
# Networks here are for small images; a larger set is shrunk unless the caller names a size.
LARGEST_KEPT, SHRUNK_TO = 256, 128
CHUNK_BYTES = 4_000_000

R = TypeVar("R")
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Found:
    """The image files below a folder, one subfolder a class.

    Attributes:
        root: The folder.
        classes: The names of its subfolders, sorted.
        files: POSIX paths below ``root``, sorted; the first part is the class.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]

    def labels(self, files: Sequence[str]) -> list[int]:
        """Return the class index of each file."""
        index = {name: i for i, name in enumerate(self.classes)}
        return [index[file.split("/", 1)[0]] for file in files]


def holds_class_folders(folder: Path) -> bool:
    """Say whether ``folder`` has subfolders and no image of its own: a split, not a class called train."""
    if not folder.is_dir():
        return False
    entries = _entries(folder)
    return any(e.is_dir() for e in entries) and not any(_is_image(e) for e in entries)


def scan(root: Path) -> Found:
    """Find the images of every class folder below ``root``, at any depth.

    Args:
        root: A folder with one subfolder a class. Hidden files and folders, files at class level and files
            with other extensions than ``EXTENSIONS`` are ignored; links are followed, but never in a circle.

    Raises:
        DataError: No images at all, a class without any, or a folder that cannot be read.
    """
    classes = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    by_class = {name: _images_below(root, name) for name in classes}
    files = sorted(file for found in by_class.values() for file in found)
    if not files:
        raise DataError(
            f"{root}: no images found. Expected one subfolder a class (or train/ with one subfolder a class) "
            f"with files ending in {', '.join(EXTENSIONS)}"
        )
    empty = [name for name, found in by_class.items() if not found]
    if empty:
        raise DataError(
            f"{root}: the class folder {empty[0]!r} holds no images ({len(empty)} such folder(s)). "
            f"Remove it, or add files ending in {', '.join(EXTENSIONS)}"
        )
    return Found(root, tuple(classes), tuple(files))


@dataclass(frozen=True)
class FolderReader:
    """Reads folders with the same settings.

    Attributes:
        image_size: Side of the square that all images are resized to, or None to choose by inspection.
        skip_bad: Leave out images that cannot be read, and list them; otherwise the first is an error.
        cache_dir: Where decoded images are kept.
        progress: Told how far it is and which size was chosen.
    """

    image_size: int | None
    skip_bad: bool
    cache_dir: Path
    progress: Progress

    def read(self, root: Path, *, name: str, prefix: str = "", shape: Shape | None = None) -> ImageSet:
        """Read a folder with one subfolder a class, from the cache where it holds the same files.

        Args:
            root: The folder.
            name: What to call the set.
            prefix: Put before the path below ``root`` to make an id, such as ``train/``.
            shape: C, H, W to bring a test set to; None for a training set, which chooses its own and must
                hold two classes with two images each.

        Returns:
            The set; its images are mapped from a file.

        Raises:
            DataError: See :func:`scan`; or a bad image without ``skip_bad``, or too few images left.
            StorageError: The cache cannot be written.
        """
        found = scan(root)
        if shape is None:
            check_trainable(str(root), found.classes, torch.tensor(found.labels(found.files)))
        settings = repr((prefix, self.image_size, shape, self.skip_bad))
        key = cache.content_key(root, found.files, settings, self.progress)
        entry = cache.fetch(self.cache_dir, key)
        if entry is None:
            self._build(found, key, prefix, shape)
            entry = cache.fetch(self.cache_dir, key)
            if entry is None:
                raise StorageError(f"{self.cache_dir / key}: the entry just written cannot be read back")
        else:
            count, _, height, width = entry[0].shape
            self.progress.say(f"{count:,} images of {width}x{height} taken from the cache ({self.cache_dir / key})")
        meta, images = entry
        labels = torch.tensor(meta.labels)
        if shape is None:
            check_trainable(str(root), meta.classes, labels)
        return ImageSet(images, labels, meta.classes, meta.ids, name, meta.skipped)

    def _build(self, found: Found, key: str, prefix: str, shape: Shape | None) -> None:
        with quiet():
            headers = dict(self._each("looking at image sizes", found.root, found.files, inspect, chunk=32))
            _require_any(headers, found)
            target = shape or self._choose_shape(found.root, list(headers.values()))
            write = partial(self._write, found, tuple(headers), target, prefix)
            cache.store(self.cache_dir, key, len(headers) * prod(target), write)

    def _write(self, found: Found, files: Sequence[str], shape: Shape, prefix: str, stream: BinaryIO) -> cache.Meta:
        """Decode ``files`` in order into ``stream``; one chunk a thread is in memory at a time."""
        channels, height, width = shape
        read = partial(decode, channels=channels, height=height, width=width)
        chunk = max(1, min(32, CHUNK_BYTES // prod(shape)))
        kept = []
        for file, image in self._each("reading images", found.root, files, read, chunk=chunk):
            # Written, not stored through a mapping: there a full disk is a bus error that ends the process.
            stream.write(image.data)
            kept.append(file)
        _require_any(kept, found)
        return cache.Meta(
            shape=(len(kept), *shape),
            labels=tuple(found.labels(kept)),
            classes=tuple(map(_printable, found.classes)),
            ids=tuple(prefix + _printable(file) for file in kept),
            skipped=tuple(prefix + _printable(file) for file in sorted(set(found.files) - set(kept))),
        )

    def _each(
        self, title: str, root: Path, files: Sequence[str], function: Callable[[Path], R], *, chunk: int
    ) -> Iterator[tuple[str, R]]:
        """Yield each file with what ``function`` makes of it; leave out bad ones, or stop at the first."""

        def attempt(file: str) -> tuple[str, R | BadImageError]:
            try:
                return file, function(root / file)
            except BadImageError as error:
                return file, error

        with self.progress.bar(title, len(files), "images") as bar:
            for results in map_chunks(attempt, files, chunk=chunk):
                bad = [(file, result) for file, result in results if isinstance(result, BadImageError)]
                if bad and not self.skip_bad:
                    file, reason = bad[0]
                    raise DataError(
                        f"cannot read the image {_printable(str(root / file))}: {reason} "
                        f"({len(bad)} bad so far). Repair or remove it; --skip-bad leaves such images out"
                    )
                for file, result in results:
                    if not isinstance(result, BadImageError):
                        yield file, result
                bar.advance(len(results))

    def _choose_shape(self, root: Path, headers: Sequence[Header]) -> Shape:
        channels = 1 if all(header.grey for header in headers) else 3
        if self.image_size is not None:
            return channels, self.image_size, self.image_size
        sizes = sorted({(header.width, header.height) for header in headers}, key=lambda size: (prod(size), size))
        smallest, largest = sizes[0], sizes[-1]
        if len(sizes) > 1:
            median = statistics.median(min(header.width, header.height) for header in headers)
            side = min(SIDES, key=lambda candidate: abs(candidate - median))
            given = (
                f"images come in {len(sizes)} sizes ({smallest[0]}x{smallest[1]} to "
                f"{largest[0]}x{largest[1]}, median shorter side {median:g})"
            )
        elif max(largest) > LARGEST_KEPT:
            side = SHRUNK_TO
            given = f"images are {largest[0]}x{largest[1]}"
        else:
            width, height = largest
            if min(width, height) < MIN_SIDE:
                raise DataError(
                    f"{root}: images are {width}x{height}; at least {MIN_SIDE}x{MIN_SIDE} are needed. "
                    "--image-size N enlarges them"
                )
            return channels, height, width
        self.progress.say(f"{given}; all are resized to {side}x{side}; --image-size N changes it")
        return channels, side, side


def _require_any(kept: Collection[str], found: Found) -> None:
    if not kept:
        raise DataError(f"{found.root}: none of the {len(found.files):,} images can be read")


def _printable(path: str) -> str:
    """Escape what is not valid UTF-8 in a file name, so that an id can be written anywhere."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    # A broken link counts: it is named as a bad image instead of vanishing. A pipe does not: reading it would
    # hang.
    is_file = entry.is_file() or not os.path.exists(entry.path)
    return is_file and entry.name.rpartition(".")[2].lower() in EXTENSIONS


def _images_below(root: Path, name: str) -> list[str]:
    start = os.path.join(root, name)
    # A link to a folder above, or to one already searched, would lead round in a circle.
    seen = {_identity(parent) for parent in Path(os.path.realpath(start)).parents}
    pending, found = [(start, name)], []
    while pending:
        folder, relative = pending.pop()
        identity = _identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _entries(folder):
            path = f"{relative}/{entry.name}"
            if entry.is_dir():
                pending.append((entry.path, path))
            elif _is_image(entry):
                found.append(path)
    return found


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
