"""Images to look at in groups by likeness, what is ordinary beside them, and what the network sees in them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from antibackdoor.progress import SILENT, Bar, Progress
from antibackdoor.review.likeness import cluster, ordinary_of, shrink

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.review.pixels import Pictures
    from antibackdoor.stored import StoredRun

__all__ = ["Grouping", "Seen", "drawn", "parts_of", "ranking", "seen_in"]

_ORDINARY = 400  # images of a class that say what is ordinary in it
_ENOUGH_ORDINARY = 10
_MENTIONED = 0.2  # share of a group from which on a class that the network sees in it is named


@dataclass(frozen=True)
class Seen:
    """The class, another than their own, that the network sees most often in a group of images.

    Attributes:
        label: Of that class.
        count: Images in which it sees it.
        of: Images of the group.
    """

    label: int
    count: int
    of: int


def ranking(stored: StoredRun) -> NDArray[np.int64]:
    """Return all rows of a run, int64 (N,), the most suspect first; those without a score come last."""
    scores = np.where(stored.scored, stored.scores, -np.inf)
    return np.lexsort((np.arange(len(scores)), -scores)).astype(np.int64)


def parts_of(groups: NDArray[np.int64], rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Return the groups that have some of the rows, with their rows in the order given.

    Args:
        groups: int64 (N,), the group of every image.
        rows: int64 (R,).
    """
    order = np.argsort(groups[rows], kind="stable")
    keys, starts = np.unique(groups[rows][order], return_index=True)
    return list(zip(keys.tolist(), np.split(rows[order], starts[1:]), strict=True)) if len(keys) else []


def seen_in(stored: StoredRun, rows: NDArray[np.int64]) -> Seen | None:
    """Return which class, another than their own, the network sees most often in images of one class.

    None where the run has no network's word, or where it hardly ever sees another class.
    """
    if stored.seen is None or not len(rows):
        return None
    others = stored.seen[rows]
    counts = np.bincount(others[others != stored.labels[rows]], minlength=len(stored.classes))
    label = int(counts.argmax())
    count = int(counts[label])
    return Seen(label, count, len(rows)) if count and count >= _MENTIONED * len(rows) else None


def drawn(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return at most so many of the rows, int64, evenly over them."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)].astype(np.int64)


class Grouping:
    """Suspects of a run and images near them, in groups.

    Args:
        stored: The run.
        pictures: Its images.
        near: bool (N,), images that are not flagged and are looked at with the suspects.
        progress: Told how far the grouping is.
    """

    def __init__(
        self, stored: StoredRun, pictures: Pictures, near: NDArray[np.bool_], progress: Progress = SILENT
    ) -> None:
        self.stored, self.pictures, self.near = stored, pictures, near
        self._progress = progress

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        """int64 (N,), the group of likeness of each image looked at, -1 of others; the most suspect group is 0."""
        with self._progress.bar("grouping", len(self.stored.classes), "classes") as bar:
            return self._cluster(bar)

    def _cluster(self, bar: Bar) -> NDArray[np.int64]:
        stored = self.stored
        found = np.full(len(stored.ids), -1, np.int64)
        total = 0
        for label in range(len(stored.classes)):
            bar.advance()
            own = (stored.labels == label) & (self.pictures.places >= 0)
            # Apart, so that what suspects have in common is not thinned by others.
            parts = [np.flatnonzero(own & chosen) for chosen in (stored.flagged, self.near & ~stored.flagged)]
            if any(len(rows) for rows in parts):
                ordinary = ordinary_of(shrink(self.pictures.pixels(self.ordinary(label))))
            for rows in parts:
                if len(rows):
                    groups = cluster(self.pictures.pixels(rows), ordinary)
                    found[rows] = total + groups
                    total += int(groups.max()) + 1
        ranks = np.empty(total, np.int64)
        for rank, (key, _) in enumerate(self.most_suspect_first(parts_of(found, np.flatnonzero(found >= 0)))):
            ranks[key] = rank
        return np.where(found < 0, -1, ranks[found]) if total else found

    def ordinary(self, label: int, count: int = _ORDINARY) -> NDArray[np.int64]:
        """Return rows of a class that are neither flagged nor near, drawn evenly.

        Where there are too few, near ones are taken as well, then those of other classes.
        """
        there, own = self.pictures.places >= 0, self.stored.labels == label
        unflagged = there & ~self.stored.flagged
        for candidates in (unflagged & ~self.near & own, unflagged & own, unflagged, there):
            rows = np.flatnonzero(candidates)
            if len(rows) >= _ENOUGH_ORDINARY:
                break
        return drawn(rows, count)

    def most_suspect_first(self, parts: list[tuple[int, NDArray[np.int64]]]) -> list[tuple[int, NDArray[np.int64]]]:
        """Return groups in the order to look at: suspects first, then classes in doubt; what is in no group last."""
        stored = self.stored
        in_doubt = np.isin(stored.labels, np.array(stored.doubtful, np.int64))

        def place(part: tuple[int, NDArray[np.int64]]) -> tuple[bool, int, int, int]:
            key, rows = part
            return key < 0, -int(stored.flagged[rows].sum()), -int(in_doubt[rows].any()), -len(rows)

        return sorted(parts, key=place)
