"""Going through folders: what is an image by its name, what is not, and what nobody meant to keep there."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from antibackdoor.data.formats import EXTENSIONS, missing
from antibackdoor.data.opening import printable
from antibackdoor.errors import DataError

__all__ = [
    "LITTER",
    "TRUTH",
    "TRUTH_COLUMNS",
    "Left",
    "holds_truth",
    "images_below",
    "is_folder",
    "is_image",
    "visible",
]

# What systems and archives leave in folders without being asked.
LITTER = frozenset({"__macosx", ".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db", "@eadir", "$recycle.bin"})
SHOWN, SHOWN_CHARACTERS = 6, 120
# What `poison` writes beside the class folders. The reader knows it, says nothing of it, and does not look at it.
TRUTH, TRUTH_COLUMNS = "manifest.csv", ("id", "label", "original_label", "poisoned", "cover", "source")


@dataclass(eq=False)
class Left:
    """What was left out of a set, to be told in one line.

    Attributes:
        kinds: Files of other types, by extension with its dot; "" for none.
        litter: Names that systems leave behind.
        hidden: How many other names that start with a dot.
        special: How many pipes, sockets and devices.
        empty: Class folders without any file.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    litter: set[str] = field(default_factory=set)
    hidden: int = 0
    special: int = 0
    empty: list[str] = field(default_factory=list)

    def note(self, entry: os.DirEntry[str]) -> None:
        """Count an entry that is neither a folder nor an image."""
        if _is_special(entry):
            self.special += 1
        else:
            self.kinds[os.path.splitext(entry.name)[1].lower()] += 1

    def add(self, other: Left) -> None:
        """Take over the counts of another."""
        self.kinds += other.kinds
        self.litter |= other.litter
        self.hidden += other.hidden
        self.special += other.special
        self.empty += other.empty

    def kinds_in_words(self) -> str:
        """Return such as "12 files of types that are not read (.txt 10, .heic 2: needs ...)", or nothing."""
        if not self.kinds:
            return ""
        parts = []
        for kind, count in sorted(self.kinds.items(), key=lambda item: (-item[1], item[0]))[:SHOWN]:
            needs = missing(kind.removeprefix("."))
            parts.append(f"{printable(kind) or 'no extension'} {count:,}" + (f", which {needs}" if needs else ""))
        if len(self.kinds) > SHOWN:
            parts.append("...")
        total = self.kinds.total()
        files = "1 file of a type that is" if total == 1 else f"{total:,} files of types that are"
        return f"{files} not read ({', '.join(parts)})"

    def in_words(self) -> str:
        """Return everything in one line, or nothing."""
        hidden = f"{self.hidden:,} hidden files or folders" if self.hidden else ""
        special = f"{self.special:,} pipes or devices" if self.special else ""
        empty = ""
        if self.empty:
            more = f" and {len(self.empty) - SHOWN} more" if len(self.empty) > SHOWN else ""
            empty = f"class folders without files: {', '.join(map(printable, self.empty[:SHOWN]))}{more}"
        return "; ".join(filter(None, (self.kinds_in_words(), hidden, special, ", ".join(sorted(self.litter)), empty)))


def visible(folder: str | Path, left: Left | None = None) -> list[os.DirEntry[str]]:
    """Return what a folder holds, without hidden names and litter.

    Args:
        folder: The folder.
        left: Told of those.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        raise _unreadable(folder, error) from error
    kept = []
    for entry in found:
        litter = entry.name.casefold() in LITTER
        if not litter and not entry.name.startswith("."):
            kept.append(entry)
        elif left is not None and litter:
            left.litter.add(entry.name)
        elif left is not None:
            left.hidden += 1
    return kept


def holds_truth(path: str | Path) -> bool:
    """Say whether a file is the manifest of the truth that ``poison`` writes, by its name and its header.

    Version 0.1 wrote it without the last column, ``source``.
    """
    if os.path.basename(path) != TRUTH or not os.path.isfile(path):
        return False
    try:
        with open(path, encoding="utf-8") as file:
            header = file.readline(SHOWN_CHARACTERS).rstrip("\n")
    except (OSError, UnicodeDecodeError):
        return False
    return header in (",".join(TRUTH_COLUMNS), ",".join(TRUTH_COLUMNS[:-1]))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry is a folder, or a link that leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Say whether an entry that is no folder is an image by its name.

    A link that leads nowhere counts: it is named as a bad image instead of vanishing. A pipe does not.
    """
    return entry.name.rpartition(".")[2].lower() in EXTENSIONS and not is_folder(entry) and not _is_special(entry)


def images_below(root: Path, name: str, left: Left) -> list[str]:
    """Return the images below a class folder, at any depth, as POSIX paths below ``root``.

    Links are followed, but never to a folder that was searched or lies above.

    Args:
        root: The folder with the class folders.
        name: The class folder.
        left: Told of what is left out.

    Raises:
        DataError: A folder that cannot be read.
    """
    start = os.path.join(root, name)
    seen = {_identity(parent) for parent in Path(os.path.realpath(start)).parents}
    pending, found = [(start, name)], []
    while pending:
        folder, relative = pending.pop()
        identity = _identity(folder)
        if identity in seen:
            continue
        seen.add(identity)
        for entry in visible(folder, left):
            path = f"{relative}/{entry.name}"
            if is_folder(entry):
                pending.append((entry.path, path))
            elif is_image(entry):
                found.append(path)
            else:
                left.note(entry)
    return found


def _is_special(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_file():
            return False
        mode = os.stat(entry.path).st_mode
    except OSError:
        return False  # a link that leads nowhere, or to itself
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _identity(folder: str | Path) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def _unreadable(folder: str | Path, error: OSError) -> DataError:
    name = printable(str(folder))
    if len(name) > SHOWN_CHARACTERS:
        name = f"{name[:SHOWN_CHARACTERS]}... ({len(name):,} characters)"
    return DataError(f"cannot read the folder {name}: {error.strerror or error}")
