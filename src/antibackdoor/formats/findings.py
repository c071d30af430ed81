"""What every format tells of a finished run, counted once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import torch

from antibackdoor.advice import Advice, advise
from antibackdoor.defences.against import AGAINST
from antibackdoor.formats.escaping import visible
from antibackdoor.isolation import most_suspect_first
from antibackdoor.stored import StoredRun

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Findings"]


@dataclass(frozen=True, eq=False)
class Findings:
    """A finished run, as the formats see it.

    Attributes:
        run: What its folder holds.
        folder: Where it lies.
    """

    run: StoredRun
    folder: Path

    @property
    def verdict(self) -> str:
        """``poisoned``, ``undecided``, ``no sign of poison``, or ``not judged``."""
        return self.run.record.verdict or "not judged"

    @cached_property
    def name(self) -> str:
        """What the set is called, in one line."""
        return visible(self.short(str(self.run.record.data.get("name") or self.source or "data")))

    @property
    def source(self) -> str:
        """What was given as DATA."""
        data = self.run.record.config.get("data")
        return str(data.get("source") or "") if isinstance(data, dict) else ""

    @property
    def compared(self) -> bool:
        """Whether the set is a batch that was compared with an earlier one."""
        defence = self.run.record.config.get("defence")
        return isinstance(defence, dict) and defence.get("name") == AGAINST

    @cached_property
    def advice(self) -> Advice:
        """What to do, what was looked at, what would make it surer."""
        return advise(self.run)

    @cached_property
    def flagged(self) -> NDArray[np.int64]:
        """Int64 (F,), the rows that are flagged, most suspect first, in the order of suspects.csv."""
        order = most_suspect_first(torch.from_numpy(np.array(self.run.scores))).numpy()
        rows: NDArray[np.int64] = order[self.run.flagged[order]].astype(np.int64)
        return rows

    @cached_property
    def by_class(self) -> dict[int, NDArray[np.int64]]:
        """The flagged rows of each class, most suspect first; classes without any are there, too."""
        labels = self.run.labels[self.flagged]
        return {label: self.flagged[labels == label] for label in range(len(self.run.classes))}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Int64 (K,), the images of each class."""
        return np.bincount(self.run.labels, minlength=len(self.run.classes)).astype(np.int64)

    @property
    def skipped(self) -> list[str]:
        """The files that were left out because they could not be read."""
        names = self.run.record.data.get("skipped")
        return [str(name) for name in names] if isinstance(names, list) else []

    def short(self, text: str) -> str:
        """Return a name that may begin with what was given as DATA, without the folders of the machine before it."""
        path = PurePath(self.source)
        if text.startswith(self.source) and (path.is_absolute() or ".." in path.parts):
            return (path.name or "data") + text[len(self.source.rstrip("/")) :]
        return text

    def class_name(self, row: int) -> str:
        """Return the name of the class that an image has in the set."""
        return self.run.classes[int(self.run.labels[row])]

    def fingerprint(self, row: int) -> str:
        """Return what tells an image: SHA-256 of its pixels, or of class and id where that was not kept."""
        if self.run.content is not None:
            return bytes(self.run.content[row]).hex()
        return hashlib.sha256(
            f"{self.class_name(row)}\0{self.run.ids[row]}".encode(errors="backslashreplace")
        ).hexdigest()

    def count(self) -> str:
        """Return "12 of 600 training images flagged"."""
        return f"{len(self.flagged):,} of {len(self.run.ids):,} training images flagged"
