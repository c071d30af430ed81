"""What the parts of a set are called: the one to train on, and the one to measure on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from antibackdoor.data.listing import Listing
from antibackdoor.errors import DataError

__all__ = ["TEST", "TRAIN", "Splits", "chosen_parts", "first_named", "part_in", "shown"]

TRAIN = ("train",)
TEST = ("test", "val", "valid", "validation", "dev")  # the first that there is
SHOWN = 10


@dataclass(frozen=True, eq=False)
class Splits:
    """What a source holds, by the part.

    Attributes:
        train: The images to train on.
        test: The images to measure on, or None.
    """

    train: Listing
    test: Listing | None


def first_named(wanted: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is called as the first possible of ``wanted``, whatever the case, or None."""
    by_name = {name.casefold(): name for name in names}
    return next((by_name[name] for name in wanted if name in by_name), None)


def part_in(path: str) -> str:
    """Return the part that a file belongs to by its name, such as "train" for ``data/train-000.parquet``, or ""."""
    words = re.split(r"[^a-z]+", path.casefold())
    return next((word for word in words if word in (*TRAIN, *TEST)), "")


def chosen_parts(
    parts: Mapping[str, int], unit: str, where: str, say: Callable[[str], None], *, whole: bool
) -> tuple[str | None, str | None]:
    """Choose what to train on and what to measure on.

    Args:
        parts: How many items each part has, by its name; "" for items that belong to none.
        unit: What the items are, such as "rows".
        where: What to call the source in messages.
        say: Told what is not used.
        whole: The source is a test set.

    Returns:
        The names of both, None where there is none. As a test set: its test part and None, or None and None for all.

    Raises:
        DataError: There are parts, but none to train on.
    """
    held_out = first_named(TEST, parts)
    if whole:
        return held_out, None
    if set(parts) == {""}:
        return "", None
    own = first_named(TRAIN, parts)
    if own is None:
        raise DataError(f"{where}: no {unit} of the split 'train' to train on; it has {shown(parts)}")
    if unused := [name for name in parts if name not in {own, held_out}]:
        count, total = sum(parts[name] for name in unused), sum(parts.values())
        say(f"{where}: {count:,} of {total:,} {unit} are not used, of the split {shown(unused)}")
    return own, held_out


def shown(names: Iterable[str]) -> str:
    """Return names for a message, the first ten."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")
