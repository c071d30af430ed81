"""Files that hold many images each: which ones a name, a pattern or a folder stands for, and of which part they are."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.data.splits import TEST, TRAIN, part_in
from antibackdoor.data.walk import is_folder, is_image, visible
from antibackdoor.errors import DataError

__all__ = ["Shards", "expanded", "is_pattern", "parted", "shards_in", "shards_of_pattern"]

SPECIAL = re.compile(r"[{}*]")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
MOST = 100_000
BESIDE = frozenset({"data", *TRAIN, *TEST})  # subfolders that shards may lie in


@dataclass(frozen=True)
class Shards:
    """Files of one kind below a folder.

    Attributes:
        root: The folder.
        files: POSIX paths below it, sorted.
    """

    root: Path
    files: tuple[str, ...]

    def by_part(self) -> dict[str, list[str]]:
        """Return the files by the part that their names say (``train-000.tar``, ``val/000.tar``), "" for none."""
        parts: dict[str, list[str]] = {}
        for file in self.files:
            parts.setdefault(part_in(file), []).append(file)
        return parts


def is_pattern(source: str) -> bool:
    """Say whether a source is a pattern such as ``set-{000..009}.tar`` or ``set-*.tar``, and no file of that name."""
    return bool(SPECIAL.search(source)) and not Path(source).exists()


def shards_of_pattern(source: str) -> Shards:
    """Return the files that a pattern with ``{000..009}``, ``{a,b}`` or ``*`` stands for.

    Raises:
        DataError: One of them is not there, or they are more than 100,000.
    """
    start, rest = parted(source)
    root = Path(start)
    files: list[str] = []
    for name in expanded(rest, source):
        found = sorted(str(path.relative_to(root)) for path in root.glob(name)) if "*" in name else [name]
        if not found or not (root / found[0]).exists():
            raise DataError(f"{source}: {root / name}: no such file")
        files += found
    return Shards(root, tuple(files))


def parted(source: str) -> tuple[str, str]:
    """Part a pattern into the folder that is the same for all its files, and the rest."""
    parts = source.split("/")
    fixed = next(i for i, part in enumerate(parts) if SPECIAL.search(part))
    folder = "/".join(parts[:fixed])
    return folder or ("/" if fixed else "."), "/".join(parts[fixed:])


def shards_in(folder: Path, suffix: str) -> Shards | None:
    """Return the files with an ending that a folder holds, itself and in ``data/``, ``train/``, ``test/`` and the like.

    Args:
        folder: The folder.
        suffix: Such as ".tar".

    Returns:
        None where there are none, or where there are images or class folders beside them.

    Raises:
        DataError: A folder that cannot be read.
    """
    files: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        for entry in visible(folder / below):
            path = os.path.join(below, entry.name)
            if is_folder(entry):
                if below.count("/") or entry.name.casefold() not in BESIDE:
                    return None
                pending.append(path)
            elif is_image(entry):
                return None
            elif entry.name.lower().endswith(suffix):
                files.append(path)
    return Shards(folder, tuple(sorted(files))) if files else None


def expanded(text: str, source: str) -> list[str]:
    """Return all that a text with ``{000..009}`` and ``{a,b}`` stands for.

    Args:
        text: May have ``*`` as well, which stays.
        source: What to call it in messages.

    Raises:
        DataError: A range that does not rise, or more than 100,000 names.
    """
    pieces: list[Sequence[str]] = []
    place = 0
    for match in re.finditer(f"{RANGE.pattern}|{CHOICE.pattern}", text):
        low, high, choice = match.groups()
        if low is None:
            options: Sequence[str] = choice.split(",")
        else:
            if max(len(low), len(high)) > 9 or not int(low) <= int(high) < int(low) + MOST:
                raise DataError(f"{source}: {match.group()} must rise, by at most {MOST:,}")
            width = len(low) if low.startswith("0") else 0
            options = [f"{number:0{width}d}" for number in range(int(low), int(high) + 1)]
        pieces += [[text[place : match.start()]], options]
        place = match.end()
    pieces.append([text[place:]])
    count = 1
    for options in pieces:
        count *= len(options)
    if count > MOST:
        raise DataError(f"{source}: stands for {count:,} files; at most {MOST:,} are read")
    return ["".join(choice) for choice in itertools.product(*pieces)]
