"""A folder with one subfolder a class: which images it holds, and of which class."""

from __future__ import annotations

import os
from pathlib import Path

from antibackdoor.data.listing import Listing
from antibackdoor.data.opening import printable
from antibackdoor.errors import DataError

__all__ = ["EXTENSIONS", "holds_class_folders", "scan"]

EXTENSIONS = ("bmp", "jpeg", "jpg", "pgm", "png", "ppm", "webp")


def holds_class_folders(folder: Path) -> bool:
    """Say whether ``folder`` has subfolders and no image of its own: a split, not a class called train."""
    if not folder.is_dir():
        return False
    entries = _entries(folder)
    return any(e.is_dir() for e in entries) and not any(_is_image(e) for e in entries)


def scan(root: Path, prefix: str = "") -> Listing:
    """Find the images of every class folder below ``root``, at any depth.

    Args:
        root: A folder with one subfolder a class. Hidden files and folders, files at class level and files
            with other extensions than ``EXTENSIONS`` are ignored; links are followed, but never in a circle.
        prefix: Put before the path below ``root`` to make an id, such as ``train/``.

    Returns:
        The images in the order of their paths; classes in the order of their names.

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
    number = {name: i for i, name in enumerate(classes)}
    return Listing(
        where=str(root),
        root=root,
        files=tuple(files),
        classes=tuple(map(printable, classes)),
        labels=tuple(number[file.split("/", 1)[0]] for file in files),
        ids=tuple(prefix + printable(file) for file in files),
    )


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
