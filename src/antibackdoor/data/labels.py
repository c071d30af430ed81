"""Labels as text, from a table or a shard: names, or whole numbers from 0."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from antibackdoor.errors import DataError

__all__ = ["checked_labels", "class_names", "numbered"]

WHOLE = re.compile(r"[+-]?\d+")


def class_names(labels: Iterable[str]) -> tuple[str, ...]:
    """Return each label once, in the order that classes are numbered in: whole numbers by size, else by name."""
    names = set(labels)
    if all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def numbered(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the K classes, and the class index of each label."""
    names = class_names(labels)
    number = {name: i for i, name in enumerate(names)}
    return names, tuple(number[label] for label in labels)


def checked_labels(labels: Iterable[str], place: Callable[[int], str]) -> list[str]:
    """Return the labels without blanks around them.

    Args:
        labels: N texts.
        place: Says where a label stands, for a message.

    Raises:
        DataError: One is empty; or all are numbers, and one is a fraction or negative.
    """
    stripped = [label.strip() for label in labels]
    names = set(stripped)
    if "" in names:
        raise DataError(f"{place(stripped.index(''))}: no label")
    if all(map(_is_number, names)):
        fraction = next((label for label in stripped if not WHOLE.fullmatch(label)), None)
        if fraction is not None:
            raise DataError(
                f"{place(stripped.index(fraction))}: label {fraction} is not a whole number; labels are class names, "
                "or whole numbers from 0"
            )
        negative = next((label for label in stripped if label.startswith("-")), None)
        if negative is not None:
            raise DataError(
                f"{place(stripped.index(negative))}: label {negative} is negative; classes are counted from 0"
            )
    return stripped


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
