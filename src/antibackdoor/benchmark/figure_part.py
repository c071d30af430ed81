"""The part of a grid that goes into one figure, and what the figures share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from antibackdoor.benchmark.reading import MeasuredCell, Setting
from antibackdoor.benchmark.summary import Stat, Summary

__all__ = ["METRICS", "Drawing", "Part", "named"]

METRICS = (("asr", "Attack success, %"), ("ca", "Clean accuracy, %"))

Drawing: TypeAlias = tuple[str, Any]  # name of the file without its ending, and matplotlib's Figure


@dataclass(frozen=True)
class Part:
    """The part of a grid that goes into one figure: one data set, one network.

    Attributes:
        names: Theirs.
        settings: Its rows.
        cells: Its done cells.
        summary: Of the whole grid.
    """

    names: str
    settings: tuple[Setting, ...]
    cells: tuple[MeasuredCell, ...]
    summary: Summary

    def title(self, spread: str | None = "bars", cells: Sequence[MeasuredCell] | None = None) -> str:
        """Return the names with the number of seeds: "cifar10, wrn-16-1 (n = 1 to 3, bars: standard deviation)".

        Args:
            spread: What shows the standard deviation, if anything does.
            cells: Those that are drawn; all of the part if None.
        """
        seeds = Counter((setting, defence) for setting, defence, _ in {cell.identity for cell in cells or self.cells})
        least, most = min(seeds.values()), max(seeds.values())
        count = f"n = {most}" if least == most else f"n = {least} to {most}"
        return f"{self.names} ({count}{f', {spread}: standard deviation' if spread and most > 1 else ''})"

    def stat(self, setting: Setting, defence: str, name: str) -> Stat | None:
        """Return a figure of a defence; that of the control for the defence "control"."""
        if defence == "control" and "control" not in self.summary.defences:
            return self.summary.controls.get(setting, {}).get(name)
        entry = self.summary.entries.get((setting, defence))
        return entry.stats.get(name) if entry else None

    @property
    def defences(self) -> tuple[str, ...]:
        """Those with anything done."""
        done = {cell.defence for cell in self.cells}
        return tuple(defence for defence in self.summary.defences if defence in done)

    @property
    def attacked(self) -> tuple[Setting, ...]:
        """The rows with an attack."""
        return tuple(setting for setting in self.settings if setting.rate is not None)


def named(part: Part, defence: str) -> str:
    """Return a defence's name as the tables head it; that of the control as it is."""
    return part.summary.heading(defence) if defence in part.defences else defence
