"""A folder with one subfolder a class: which images it holds, and of which class; and its parts train and test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from antibackdoor.data.formats import EXTENSIONS
from antibackdoor.data.listing import Listing
from antibackdoor.data.opening import printable
from antibackdoor.data.splits import TEST, TRAIN, first_named
from antibackdoor.data.walk import Left, holds_truth, images_below, is_folder, is_image, visible
from antibackdoor.errors import DataError

__all__ = ["Parts", "parts_of", "scan"]


@dataclass(frozen=True)
class Parts:
    """Where the images of a folder lie.

    Attributes:
        train: Name of the subfolder to train on, or None where the folder itself has the class folders.
        test: Name of the subfolder to measure on, or None.
    """

    train: str | None
    test: str | None


def parts_of(folder: Path, say: Callable[[str], None]) -> Parts:
    """Find train/ and one of test/, val/, valid/, validation/ and dev/ (the first that there is) in a folder.

    A subfolder is one of them if it has class folders and no images of its own; else it is a class of that name.

    Args:
        folder: The folder.
        say: Told of subfolders that are not used.

    Raises:
        DataError: There are such subfolders, but no train/; or the folder cannot be read.
    """
    names = sorted(entry.name for entry in visible(folder) if is_folder(entry))
    named = {name for name in names if name.casefold() in (*TRAIN, *TEST)}
    whole = {name for name in named if _holds_class_folders(folder / name)}
    train = first_named(TRAIN, whole)
    test = first_named(TEST, whole)
    if train is None:
        if names and whole == set(names):
            raise DataError(f"{folder}: {' and '.join(f'{name}/' for name in names)}, but no train/ to train on")
        return Parts(None, None)
    for name in names:
        if name in {train, test}:
            continue
        if name in named:
            reason = f"{test}/ is" if name in whole else "it has no class folders"
        else:
            reason = f"{train}/ is"
        say(f"{printable(str(folder / name))} is not used: {reason}")
    return Parts(train, test)


def scan(root: Path, prefix: str = "", say: Callable[[str], None] | None = None) -> Listing:
    """Find the images of every class folder below ``root``, at any depth.

    Args:
        root: A folder with one subfolder a class. Hidden files, what systems leave behind (``__MACOSX``,
            ``Thumbs.db``), files at class level and files with other extensions than ``EXTENSIONS`` are left out, and
            so are class folders without any file. Links are followed, but never in a circle.
        prefix: Put before the path below ``root`` to make an id, such as ``train/``.
        say: Told in one line what was left out, but for the manifest that ``poison`` wrote.

    Returns:
        The images in the order of their paths; classes in the order of their names.

    Raises:
        DataError: No images at all, a class with other files only, or a folder that cannot be read.
    """
    left = Left()
    names: list[str] = []
    for entry in visible(root, left):
        if is_folder(entry):
            names.append(entry.name)
        elif not holds_truth(entry.path):
            left.note(entry)
    by_class: dict[str, list[str]] = {}
    for name in sorted(names):
        own = Left()
        found = images_below(root, name, own)
        if found:
            by_class[name] = found
        elif own.kinds:
            raise DataError(
                f"{root}: the class folder {name!r} holds no images but {own.kinds_in_words()}. Remove it, or "
                f"add files ending in {', '.join(EXTENSIONS)}"
            )
        else:
            left.empty.append(name)
        left.add(own)
    if not by_class:
        held = left.in_words()
        raise DataError(
            f"{root}: no images found{f' ({held})' if held else ''}. Expected one subfolder a class (or train/ with "
            f"one subfolder a class) with files ending in {', '.join(EXTENSIONS)}"
        )
    if say is not None and (words := left.in_words()):
        say(f"{root}: left out: {words}")
    files = sorted((file, label) for label, found in enumerate(by_class.values()) for file in found)
    return Listing(
        where=str(root),
        root=root,
        files=tuple(file for file, _ in files),
        classes=tuple(map(printable, by_class)),
        labels=tuple(label for _, label in files),
        ids=tuple(prefix + printable(file) for file, _ in files),
    )


def _holds_class_folders(folder: Path) -> bool:
    """Say whether ``folder`` has subfolders and no image of its own: a split, not a class called train."""
    entries = visible(folder)
    return any(is_folder(e) for e in entries) and not any(is_image(e) for e in entries)
