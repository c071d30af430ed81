"""Where images of a set lie in a folder: under their class, by the name that the source gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from antibackdoor.errors import DataError

__all__ = ["check_folder_names", "names_below"]

_TRAIN = "train"
_LONGEST, _ADDED = 255, 60  # bytes of a name, and of what may be added to it


def check_folder_names(classes: Iterable[str]) -> None:
    """Check that classes can be folders.

    Raises:
        DataError: One cannot.
    """
    for name in classes:
        if not name or name.startswith(".") or set(name) & set("/\\\0"):
            raise DataError(f"class {name!r} cannot be written as a folder; rename it")


def names_below(
    ids: Sequence[str],
    own: Sequence[str],
    placed: Sequence[str] | None = None,
    *,
    suffix: str | None = None,
    split: bool = False,
) -> list[str]:
    """Return a path for each image, all of them different, with the class that it is placed in as a folder.

    Args:
        ids: N names of images: of a folder paths such as ``cat/0017.jpg`` or ``train/cat/0017.jpg``; of anything else
            the last part of the name counts.
        own: The class of each in its source, (N,).
        placed: The class that each is to lie under, (N,); ``own`` by default.
        suffix: The ending of all files, such as ".png"; by default each keeps its own.
        split: Keep the ``train/`` that stands before the class in an id.

    Returns:
        N paths in POSIX style. An image that stays in its class has the name of the source: where no ending is given
        its path is its id. One that is placed in another class, or ends otherwise now, and would take the name of
        another, has that of its own class added, as in ``dog/0017~cat.png``.
    """
    placed = own if placed is None else placed
    names, taken = [""] * len(ids), set[str]()
    rows = sorted(range(len(ids)), key=lambda row: own[row] != placed[row])  # those that stay choose first
    for row in rows:
        before, rest = _parts(ids[row], own[row])
        longest = _LONGEST if suffix is None and own[row] == placed[row] else _LONGEST - _ADDED
        path = PurePosixPath(rest if _safe(rest, longest) else f"{row:06d}{PurePosixPath(rest).suffix[:8]}")
        stem, ending = str(path.with_suffix("")), path.suffix if suffix is None else suffix
        start = f"{before if split else ''}{placed[row]}/{stem}"
        name, number = f"{start}{ending}", 1
        while name in taken:
            name = f"{start}~{own[row]}{f'~{number}' if number > 1 else ''}{ending}"
            number += 1
        taken.add(name)
        names[row] = name
    return names


def _parts(name: str, own: str) -> tuple[str, str]:
    """Return what stands before the class in an id, and what comes after it."""
    first, _, after = name.partition("/")
    if first.casefold() == _TRAIN and after.startswith(f"{own}/"):
        return f"{first}/", after[len(own) + 1 :]
    return "", name[len(own) + 1 :] if name.startswith(f"{own}/") else name.rsplit("/", 1)[-1]


def _safe(path: str, longest: int) -> bool:
    parts = path.split("/")
    return not any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > longest for part in parts)
