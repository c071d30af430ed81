"""How a grid tells how far it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from antibackdoor.benchmark.cells import Cell
from antibackdoor.benchmark.folder import Record
from antibackdoor.benchmark.measure import Task
from antibackdoor.types import Json

__all__ = ["NOBODY", "Nobody", "Watcher", "seconds_of", "time_left"]


class Watcher(Protocol):
    """Something that shows a grid at work."""

    def begin(self, cells: Sequence[Cell], known: Sequence[Record], slots: int) -> None:
        """Hear what there is to do.

        Args:
            cells: All cells of the grid.
            known: Records that are there already and stay.
            slots: How many cells run at once.
        """

    def started(self, task: Task) -> None:
        """Hear that a process has begun with a task."""

    def ended(self, task: Task, record: Record | None) -> None:
        """Hear that a task has ended, with its record if it has one."""

    def close(self) -> None:
        """Hear that nothing more comes."""


class Nobody:
    """Shows nothing; what a library call uses."""

    def begin(self, cells: Sequence[Cell], known: Sequence[Record], slots: int) -> None:
        """Do nothing."""

    def started(self, task: Task) -> None:
        """Do nothing."""

    def ended(self, task: Task, record: Record | None) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


NOBODY = Nobody()


def seconds_of(record: Record) -> float:
    """Return the wall-clock seconds of all phases of a cell."""
    seconds = record.get("seconds")
    return sum(_number(value) for value in seconds.values()) if isinstance(seconds, dict) else 0.0


def time_left(waiting: Iterable[str], finished: Iterable[Record], slots: int) -> float | None:
    """Return about how many seconds are left.

    Args:
        waiting: The label of the defence of every cell that is not finished.
        finished: Records; failed ones tell nothing about time.
        slots: How many cells run at once.

    Returns:
        Each cell counts with the mean of the finished cells of its defence, or of all where none of those is; None
        where nothing is finished.
    """
    spent: dict[str, list[float]] = defaultdict(list)
    for record in finished:
        names = record.get("cell")
        if record.get("status") == "done" and isinstance(names, dict):
            spent[str(names["defence_label"])].append(seconds_of(record))
    every = [seconds for group in spent.values() for seconds in group]
    if not every:
        return None
    means = {label: sum(group) / len(group) for label, group in spent.items()}
    mean = sum(every) / len(every)
    return sum(means.get(label, mean) for label in waiting) / max(1, slots)


def _number(value: Json) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
