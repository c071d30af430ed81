"""How the command shows work: bars on a terminal and in a notebook, plain lines elsewhere.

It goes to standard output, so that standard error holds nothing but what goes wrong; beside a document, which has
standard output for itself, it goes to standard error.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from antibackdoor.errors import one_line
from antibackdoor.progress import Bar

__all__ = ["ConsoleProgress"]

_SECONDS_BETWEEN_LINES = 10.0


class _RichBar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar."""
        if note:
            self._progress.update(self._task, advance=steps, note=note)
        else:
            self._progress.advance(self._task, steps)


class _LineBar:
    def __init__(self, console: Console, title: str, total: int, unit: str) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._done = 0
        self._started = self._last = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Print a line, not more often than every few seconds."""
        self._done += steps
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and not (note and self._done >= self._total):
            return
        self._last = now
        left = (now - self._started) / max(1, self._done) * (self._total - self._done)
        tail = f", {note}" if note else ""
        self._console.print(
            f"{self._title}: {self._done:,}/{self._total:,} {self._unit}, {left:.0f} s left{tail}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class ConsoleProgress:
    """Shows progress to a person or in a log; from Python, pass one as ``progress`` to ``train`` or ``scan``.

    Args:
        quiet: Show nothing but what goes wrong.
        beside: Show it on standard error, since standard output holds a document.
    """

    def __init__(self, *, quiet: bool = False, beside: bool = False) -> None:
        self._console = Console(quiet=quiet, stderr=beside)

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """Open a bar; see :class:`antibackdoor.progress.Progress`."""
        # In a notebook, bars need ipywidgets.
        notebook = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None
        if not (self._console.is_terminal or notebook):
            yield _LineBar(self._console, title, total, unit)
            return
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _RichBar(progress, progress.add_task(title, total=total, note=""))

    def say(self, line: str) -> None:
        """Print one line."""
        self._console.print(one_line(line), markup=False, highlight=False, soft_wrap=True)
