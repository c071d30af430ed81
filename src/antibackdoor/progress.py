"""How long work tells how far it is; the library is silent unless a caller passes something that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["SILENT", "Bar", "Progress", "Silent"]


class Bar(Protocol):
    """One running piece of work."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say that ``steps`` more are done, with a short note such as "loss 0.41, accuracy 86 %"."""


class Progress(Protocol):
    """Something that can show work and say a line."""

    def bar(self, title: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Open a bar of ``total`` steps; use it in a ``with`` block."""

    def say(self, line: str) -> None:
        """Tell the user one line, such as the image size that was chosen and why."""


class _SilentBar:
    def advance(self, steps: int = 1, note: str = "") -> None:
        """Do nothing."""


class Silent:
    """Shows nothing; what a library call uses."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Bar]:
        """Open a bar that shows nothing."""
        yield _SilentBar()

    def say(self, line: str) -> None:
        """Do nothing."""


SILENT = Silent()
