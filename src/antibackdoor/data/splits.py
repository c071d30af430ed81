"""What the parts of a set are called: the one to train on, and the one to measure on."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["TEST", "TRAIN", "first_named"]

TRAIN = ("train",)
TEST = ("test", "val", "valid", "validation", "dev")  # the first that there is


def first_named(wanted: Iterable[str], names: Iterable[str]) -> str | None:
    """Return the one of ``names`` that is called as the first possible of ``wanted``, whatever the case, or None."""
    by_name = {name.casefold(): name for name in names}
    return next((by_name[name] for name in wanted if name in by_name), None)
