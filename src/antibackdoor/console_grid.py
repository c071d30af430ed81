"""How the command shows a grid at work: a live table on a terminal, a line a cell elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from antibackdoor.benchmark import Cell, Record
from antibackdoor.benchmark.measure import Task
from antibackdoor.benchmark.watch import seconds_of, time_left

__all__ = ["GridConsole"]

_LAST = 10


class GridConsole:
    """Shows how far a grid is; see :class:`antibackdoor.benchmark.Watcher`.

    Args:
        quiet: Show nothing.
        console: Where to; standard output if None.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(quiet=quiet)
        self._lock = threading.RLock()  # Tasks are begun from threads of the pool's.
        self._live: Live | None = None
        self._slots = 1
        self._records: list[Record] = []
        self._last: deque[tuple[Cell, Record]] = deque(maxlen=_LAST)
        self._waiting: dict[str, Cell] = {}
        self._running: dict[tuple[str, str], tuple[Task, float]] = {}

    def begin(self, cells: Sequence[Cell], known: Sequence[Record], slots: int) -> None:
        """Open the table."""
        keys = {record["key"] for record in known}
        self._slots = slots
        self._records = list(known)
        self._waiting = {cell.file: cell for cell in cells if cell.key not in keys}
        self._say(f"{len(cells)} cells, {len(self._waiting)} to run, {slots} at once")
        if self._console.is_terminal and not self._console.quiet:
            self._live = Live(console=self._console, get_renderable=self.table, refresh_per_second=2)
            self._live.start()

    def started(self, task: Task) -> None:
        """Add a running cell."""
        with self._lock:
            self._running[_name(task)] = (task, time.monotonic())

    def ended(self, task: Task, record: Record | None) -> None:
        """Take it away again, and show its figures."""
        with self._lock:
            self._running.pop(_name(task), None)
            if record is None or task.cell.file not in self._waiting:
                return
            del self._waiting[task.cell.file]
            self._records.append(record)
            self._last.append((task.cell, record))
        if self._live is None:
            self._say(f"{self._count()} {task.cell.title}: {_figures(record)}{self._left()}")

    def close(self) -> None:
        """Close the table; it stays on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self) -> RenderableType:
        """Return the table as it is now."""
        with self._lock:
            failed = sum(record["status"] == "failed" for record in self._records)
            head = f"cells: {self._count()} done, {len(self._running)} running, {failed} failed{self._left()}"
            rows = Table(box=None, pad_edge=False)
            for name in ("cell", "result"):
                rows.add_column(name, overflow="fold")
            for cell, record in self._last:
                style = "red" if record["status"] == "failed" else ""
                rows.add_row(Text(cell.title), Text(_figures(record)), style=style)
            for task, since in self._running.values():
                what = "poisoning" if task.kind == "plant" else "running"
                rows.add_row(Text(task.cell.title), Text(f"{what}, {time.monotonic() - since:.0f} s"), style="dim")
            return Group(Text(head), rows)

    def _count(self) -> str:
        return f"{len(self._records)}/{len(self._records) + len(self._waiting)}"

    def _left(self) -> str:
        labels = [cell.defence_label for cell in self._waiting.values()]
        seconds = time_left(labels, self._records, self._slots)
        return "" if seconds is None or not labels else f", about {_duration(seconds)} left"

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _name(task: Task) -> tuple[str, str]:
    return task.kind, task.cell.file


def _figures(record: Record) -> str:
    metrics, error = record["metrics"], record["error"]
    if isinstance(error, dict):
        return f"failed: {error['type']}: {error['message']}"
    parts = []
    for key, title in (("ca", "CA"), ("asr", "ASR"), ("ra", "RA")):
        value = metrics.get(key) if isinstance(metrics, dict) else None
        if isinstance(value, int | float):
            parts.append(f"{title} {100 * value:.1f} %")
    return ", ".join([*parts, f"{seconds_of(record):.0f} s"])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
