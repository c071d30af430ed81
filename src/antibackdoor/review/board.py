"""What the page asks for: rows by group, filter and order, a page at a time; and what was decided about them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from antibackdoor.decisions import DECISIONS
from antibackdoor.errors import ConfigError
from antibackdoor.progress import SILENT, Progress
from antibackdoor.review.grouping import Grouping, parts_of, ranking

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from antibackdoor.review.journal import Choice, Journal
    from antibackdoor.review.pixels import Pictures
    from antibackdoor.stored import StoredRun

__all__ = ["GROUPINGS", "ORDERS", "SHOWN", "Board", "Query"]

By: TypeAlias = Literal["likeness", "finding", "class", "none"]
Show: TypeAlias = Literal["review", "flagged", "near", "undecided", "keep", "drop", "relabel", "unsure", "all"]
Order: TypeAlias = Literal["score", "score-up", "id", "class"]
GROUPINGS: tuple[By, ...] = get_args(By)
SHOWN: tuple[Show, ...] = get_args(Show)
ORDERS: tuple[Order, ...] = get_args(Order)

_LEAST_NEAR = 100


@dataclass(frozen=True)
class Query:
    """Which images, in which order.

    Attributes:
        by: How they are grouped: "likeness", "finding" (the suspects of a class that one finding speaks of, and apart
            from them the others of the class), "class" or "none".
        group: The one group that is wanted, or None for all.
        show: "review" for suspects and what is near, or one of the others of ``SHOWN``.
        text: What their ids hold, in any case; empty for all.
        order: One of ``ORDERS``.

    Raises:
        ConfigError: A word that is none of these.
    """

    by: By = "likeness"
    group: int | None = None
    show: Show = "review"
    text: str = ""
    order: Order = "score"

    def __post_init__(self) -> None:
        for name, known in (("by", GROUPINGS), ("show", SHOWN), ("order", ORDERS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")


class Board:
    """The images of a run under review.

    Args:
        stored: The run.
        pictures: Its images.
        journal: Its decisions.
        near: How many images that are not flagged are shown with the suspects, the most suspect ones, and as many
            again of each class that is in doubt; None for as many as are flagged, and 100 at least.
        progress: Told how far the grouping is.
    """

    def __init__(
        self,
        stored: StoredRun,
        pictures: Pictures,
        journal: Journal,
        near: int | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.stored, self.pictures, self.journal = stored, pictures, journal
        self.count = len(stored.ids)
        self._order = ranking(stored)
        others = self._order[~stored.flagged[self._order]]
        wanted = max(_LEAST_NEAR, int(stored.flagged.sum())) if near is None else near
        self.near = np.zeros(self.count, np.bool_)
        self.near[others[:wanted]] = True
        for label in stored.doubtful:
            self.near[others[stored.labels[others] == label][:wanted]] = True
        self.under_review = stored.flagged | self.near
        self.grouping = Grouping(stored, pictures, self.near, progress)
        self._codes = np.zeros(self.count, np.int8)
        self._labels: dict[int, str] = {}
        self._place = {name: row for row, name in enumerate(stored.ids)}
        self._read = 0
        self.look()

    def look(self) -> None:
        """Take over what was decided elsewhere since; see :meth:`Journal.look`."""
        read = self.journal.look()
        if read != self._read:
            self._refresh(self.stored.ids)
            self._read = read

    def _refresh(self, names: Iterable[str]) -> None:
        for name in names:
            row, one = self._place.get(name), self.journal.get(name)
            if row is None:
                continue
            self._codes[row] = 0 if one is None else 1 + DECISIONS.index(one.decision)
            if one is not None and one.decision == "relabel":
                self._labels[row] = one.label
            else:
                self._labels.pop(row, None)

    @property
    def clusters(self) -> NDArray[np.int64]:
        """See :attr:`Grouping.clusters`."""
        return self.grouping.clusters

    def rows(self, query: Query) -> NDArray[np.int64]:
        """Return the rows that a query asks for, in its order."""
        stored = self.stored
        chosen = self._shown(query.show)
        if query.group is not None:
            chosen = chosen & (self._groups(query.by) == query.group)
        if query.text:
            wanted = query.text.casefold()
            hits = [row for row in np.flatnonzero(chosen).tolist() if wanted in stored.ids[row].casefold()]
            chosen = np.zeros(self.count, np.bool_)
            chosen[hits] = True
        order = {"score": self._order, "score-up": self._order[::-1]}.get(query.order)
        if order is not None:
            found: NDArray[np.int64] = order[chosen[order]]
            return found
        rows = self._rows(chosen).tolist()
        if query.order == "id":
            return np.array(sorted(rows, key=stored.ids.__getitem__), np.int64)
        return np.array(sorted(rows, key=lambda row: (stored.classes[stored.labels[row]], stored.ids[row])), np.int64)

    def groups(self, query: Query) -> list[tuple[int, NDArray[np.int64]]]:
        """Return each group that has rows, with them, the one with the most suspects first."""
        rows = self.rows(query)
        return self.grouping.most_suspect_first(parts_of(self._groups(query.by), rows))

    def verdict(self, label: int) -> str:
        """Return what the run says of a class."""
        return self.stored.class_verdicts[label] if self.stored.record.verdict else "not judged"

    def finding(self, query: Query, rows: NDArray[np.int64]) -> str:
        """Return what was found in the class of a group, by finding or class; "" where nothing was, or not in these."""
        label = int(self.stored.labels[rows[0]])
        if query.by not in ("finding", "class"):
            return ""
        others = query.by == "finding" and not self.stored.flagged[rows].any() and label not in self.stored.doubtful
        return "Not flagged." if others else self.stored.findings.get(label, "")

    def item(self, row: int) -> dict[str, Any]:
        """Return what the page shows of one image, in plain values."""
        stored, code = self.stored, int(self._codes[row])
        return {
            "row": row,
            "id": stored.ids[row],
            "label": stored.classes[stored.labels[row]],
            "score": f"{stored.scores[row]:.4g}" if stored.scored[row] else "none",
            "flagged": bool(stored.flagged[row]),
            "seen": "" if stored.seen is None else stored.classes[stored.seen[row]],
            "there": bool(self.pictures.places[row] >= 0),
            "decision": DECISIONS[code - 1] if code else "",
            "to": self._labels.get(row, ""),
        }

    def tally(self, rows: NDArray[np.int64] | None = None) -> dict[str, int]:
        """Return how many images there are, flagged and by decision, of these rows or of all under review."""
        rows = self._rows(self.under_review) if rows is None else rows
        counts = np.bincount(self._codes[rows], minlength=1 + len(DECISIONS)).tolist()
        named = dict(zip(("undecided", *DECISIONS), counts, strict=True))
        return {"images": len(rows), "flagged": int(self.stored.flagged[rows].sum()), **named}

    def decide(self, rows: NDArray[np.int64], decision: str, label: str = "") -> None:
        """Decide about images and save that; "clear" takes decisions back.

        A relabelling to the label that an image has is a decision to keep it.

        Raises:
            ConfigError: No such decision or class.
            StorageError: It could not be saved, and nothing has changed.
        """
        stored = self.stored
        if decision not in (*DECISIONS, "clear"):
            raise ConfigError(f"decision: expected one of {', '.join(DECISIONS)} or clear, got {decision!r}")
        if decision == "relabel" and label not in stored.classes:
            raise ConfigError(f"label: {label!r} is not a class of this run")
        choices: dict[str, Choice] = {}
        for row in rows.tolist():
            own = stored.classes[stored.labels[row]]
            if decision == "relabel":
                choices[stored.ids[row]] = ("keep", "") if label == own else ("relabel", label)
            else:
                choices[stored.ids[row]] = None if decision == "clear" else (decision, "")  # type: ignore[assignment]
        self.journal.decide(choices)
        self._refresh(choices)
        self.look()

    def undo(self) -> list[int]:
        """Take the last step back and return its rows; see :meth:`Journal.undo`."""
        names = self.journal.undo()
        self._refresh(names)
        self.look()
        return [self._place[name] for name in names if name in self._place]

    def group_rows(self, by: By, group: int) -> NDArray[np.int64]:
        """Return every row under review of a group, whatever the filter is."""
        return self.rows(dataclasses.replace(Query(), by=by, group=group))

    def _shown(self, show: Show) -> NDArray[np.bool_]:
        if show in DECISIONS:
            decided: NDArray[np.bool_] = self._codes == 1 + DECISIONS.index(show)
            return decided
        if show == "undecided":
            left: NDArray[np.bool_] = self.under_review & (self._codes == 0)
            return left
        if show == "all":
            return np.ones(self.count, np.bool_)
        if show == "flagged":
            return self.stored.flagged
        return self.near if show == "near" else self.under_review

    def _groups(self, by: By) -> NDArray[np.int64]:
        if by == "likeness":
            return self.clusters
        if by == "finding":
            found: NDArray[np.int64] = 2 * self.stored.labels + ~self.stored.flagged
            return found
        return self.stored.labels if by == "class" else np.zeros(self.count, np.int64)

    @staticmethod
    def _rows(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.flatnonzero(mask).astype(np.int64)
