"""Decisions as they are made: into the file before anybody is told that they are saved, and back again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from antibackdoor.decisions import Decided, Decision, append_decisions, read_decisions, write_decisions

__all__ = ["Choice", "Journal"]

_MOST_UNDONE = 500

# What is chosen for an image: the decision and, for a relabelling, the new label; None takes a decision back.
Choice = tuple[Decided, str] | None


class Journal:
    """The file of decisions of one run, and what was done in this session, to be undone.

    The file may change meanwhile, by hand or by another tool: it is read again before it is written.

    Args:
        path: ``decisions.csv``; need not be there.
        who: Noted with each decision.

    Raises:
        DataError: What is there is no file of decisions.
        StorageError: It cannot be read.
    """

    def __init__(self, path: Path, who: str) -> None:
        self.path, self.who = path, who
        self._lock = threading.Lock()
        self._decisions: dict[str, Decision] = {}
        self._seen: tuple[int, int] | None = None
        self._undo: list[dict[str, Decision | None]] = []
        self._read = 0
        self._refresh()

    def look(self) -> int:
        """Read the file again if it was changed; return how often it was read, which tells if that was so.

        Raises:
            DataError: It is no file of decisions any more.
            StorageError: It cannot be read.
        """
        with self._lock:
            self._refresh()
            return self._read

    def get(self, name: str) -> Decision | None:
        """Return the decision about the image of this id, or None."""
        return self._decisions.get(name)

    def all(self) -> dict[str, Decision]:
        """Return every decision of the file by id, of images that the run does not have as well."""
        return dict(self._decisions)

    @property
    def undoable(self) -> int:
        """How many steps can be undone."""
        return len(self._undo)

    def decide(self, choices: Mapping[str, Choice]) -> None:
        """Make decisions, all of them one step; when this returns, they are on the disk.

        Args:
            choices: By id.

        Raises:
            StorageError: The file cannot be written; nothing has changed.
            DataError: It is no file of decisions any more, or a choice is none.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock:
            self._refresh()
            before = {name: self._decisions.get(name) for name in choices}
            self._save(
                {
                    name: None if choice is None else Decision(name, choice[0], choice[1], self.who, now)
                    for name, choice in choices.items()
                }
            )
            self._undo = [*self._undo[1 - _MOST_UNDONE :], before]

    def undo(self) -> list[str]:
        """Take the last step of this session back, and return the ids that it was about; none where there is none.

        Raises:
            StorageError: The file cannot be written; nothing has changed.
            DataError: It is no file of decisions any more.
        """
        with self._lock:
            if not self._undo:
                return []
            self._refresh()
            self._save(self._undo[-1])
            return list(self._undo.pop())

    def _save(self, changes: Mapping[str, Decision | None]) -> None:
        changes = {name: one for name, one in changes.items() if one is not None or name in self._decisions}
        made = [one for one in changes.values() if one is not None]
        after = {name: one for name, one in self._decisions.items() if name not in changes}
        after |= {one.id: one for one in made}
        if len(made) < len(changes):  # a decision that is taken back leaves the file
            write_decisions(self.path, after.values())
        else:
            append_decisions(self.path, made)
        self._decisions, self._seen = after, self._stamp()

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp != self._seen:
            self._decisions = {one.id: one for one in read_decisions(self.path)} if stamp else {}
            self._seen = stamp
            self._read += 1

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_size
