"""Labelled images that are known by name and not read yet: what every reader of a source makes first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.data.opening import printable

__all__ = ["Listing", "class_names"]


@dataclass(frozen=True, eq=False)
class Listing:
    """N images, each a file below one folder.

    Attributes:
        where: What to call the source in messages.
        root: The folder that the files lie below.
        files: N paths below ``root``, or absolute ones.
        classes: K names, in label order.
        labels: N class indices.
        ids: N names, unique; they stand in the lists of a run.
    """

    where: str
    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def payloads(self, rows: Sequence[int]) -> Iterator[Path]:
        """Yield what each of ``rows`` is decoded from, in that order."""
        return (self.root / self.files[row] for row in rows)

    def place(self, row: int) -> str:
        """Return where an image is found, for a message."""
        return printable(os.path.join(self.root, self.files[row]))


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return each label once, in the order that classes are numbered in: whole numbers by size, else by name."""
    names = set(labels)
    if all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))
