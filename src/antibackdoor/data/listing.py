"""Labelled images that are known by name and not read yet: what every reader of a source makes first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antibackdoor.data.opening import Payload, printable

__all__ = ["Listing"]


@dataclass(frozen=True, eq=False)
class Listing:
    """N images, each a file below one folder; readers of files that hold many derive from it.

    Attributes:
        where: What to call the source in messages.
        root: The folder that the files lie below.
        files: The paths below ``root``, or absolute ones, whose contents make the set; here one an image.
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

    chunk: ClassVar[int] = 32  # images that a thread takes at a time, at most

    def __len__(self) -> int:
        return len(self.ids)

    def payloads(self, rows: Sequence[int]) -> Iterator[Payload]:
        """Yield what each of ``rows`` is decoded from, in that order."""
        return (self.root / self.files[row] for row in rows)

    def sample(self, count: int) -> Sequence[int]:
        """Return at most ``count`` rows that rise, spread over the whole where that costs nothing."""
        return range(0, len(self), -(-len(self) // count))

    def place(self, row: int) -> str:
        """Return where an image is found, for a message."""
        return printable(os.path.join(self.root, self.files[row]))
