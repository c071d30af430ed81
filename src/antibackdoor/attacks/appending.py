"""Rows of a set once more behind it, for attacks that add images instead of replacing some."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from antibackdoor.types import ImageSet

__all__ = ["with_copies"]


def with_copies(clean: ImageSet, origin: Tensor) -> ImageSet:
    """Return a set with copies of some of its images behind it.

    Args:
        clean: N images.
        origin: int64 (M,), M >= N: 0..N-1, then the rows to copy; a row may come several times.

    Returns:
        M images. The copies of ``cat/0017.jpg`` are called ``cat/0017+1.jpg``, ``cat/0017+2.jpg``, and so on.
    """
    taken, names = set(clean.ids), []
    for row in origin[len(clean) :].tolist():
        folder, slash, file = clean.ids[row].rpartition("/")
        stem, dot, ending = file.rpartition(".")
        start, end = (stem, dot + ending) if stem else (file, "")
        number = 1
        while f"{folder}{slash}{start}+{number}{end}" in taken:
            number += 1
        names.append(f"{folder}{slash}{start}+{number}{end}")
        taken.add(names[-1])
    return dataclasses.replace(clean.select(origin), ids=(*clean.ids, *names))
