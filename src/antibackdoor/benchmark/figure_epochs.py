"""The figures that follow a training from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from antibackdoor.benchmark.charts import (
    COLOURS,
    FONT,
    MARKERS,
    add_band,
    add_legend,
    name_epochs,
    panels,
    set_limits,
    style_of,
)
from antibackdoor.benchmark.figure_part import Drawing, Part, named
from antibackdoor.benchmark.reading import MeasuredCell, Setting, mapping

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["losses", "precision_by_epoch"]

_SHARES = (("0.01", "1 %"), ("0.05", "5 %"), ("0.1", "10 %"), ("0.2", "20 %"))


def _curve(cells: Sequence[MeasuredCell], *path: str) -> NDArray[np.float64]:
    """Return a curve of every cell that has it, (seeds, E), cut to the shortest; NaN where an epoch has no value."""
    curves = []
    for cell in cells:
        value: object = mapping(cell.record.get("curves"))
        for key in path:
            value = mapping(value).get(key)
        if isinstance(value, list | tuple) and value:
            curves.append([v if isinstance(v, int | float) and math.isfinite(v) else math.nan for v in value])
    if not curves:
        return np.empty((0, 0))
    shortest = min(map(len, curves))
    return np.array([curve[:shortest] for curve in curves], dtype=np.float64)


def _first_phases(part: Part) -> Iterator[tuple[str, str, dict[Setting, list[MeasuredCell]]]]:
    """Yield each defence with curves, its first phase, and its cells by setting.

    Repairs start from undefended training; their curves are those of ``none`` and come once.
    """
    seen: set[tuple[str, int]] = set()
    for defence in part.defences:
        cells = [c for c in part.cells if c.defence == defence and _curve([c], "loss_poison").size]
        if not cells:
            continue
        kind = (str(mapping(cells[0].record.get("curves")).get("phase")), _curve(cells, "loss_poison").shape[1])
        if kind in seen and not cells[0].undefended:
            continue
        if cells[0].undefended:
            seen.add(kind)
        groups = {s: [c for c in cells if c.setting == s] for s in part.settings}
        yield defence, kind[0], {setting: group for setting, group in groups.items() if group}


def _curves_title(part: Part, groups: Mapping[Setting, Sequence[MeasuredCell]]) -> str:
    return part.title("bands", [cell for cells in groups.values() for cell in cells])


def precision_by_epoch(part: Part) -> Iterator[Drawing]:
    """Draw how much poison is among the lowest losses, epoch by epoch, a figure a defence."""
    for defence, phase, groups in _first_phases(part):
        title = (
            f"{_curves_title(part, groups)}: {named(part, defence)}, precision of the lowest losses in phase “{phase}”"
        )
        figure, charts = panels([s.title for s in groups], title)
        for chart, cells in zip(charts, groups.values(), strict=True):
            for number, (share, label) in enumerate(_SHARES):
                curves = 100 * _curve(cells, "precision", share)
                if curves.size:
                    mark = MARKERS[number] if curves.shape[1] <= 20 else ""
                    add_band(chart, curves, {**style_of(number), "marker": mark, "markersize": 3}, label)
            name_epochs(chart)
        if any(chart.has_data() for chart in charts):
            set_limits(charts, ["precision"] * len(charts))
            figure.supylabel("Poison among them, %", size=FONT)
            add_legend(figure, charts, "Share of images isolated")
            yield f"precision-by-epoch {defence}", figure


def losses(part: Part) -> Iterator[Drawing]:
    """Draw the mean losses of poisoned and of clean images, epoch by epoch, a figure a defence."""
    for defence, phase, groups in _first_phases(part):
        title = f"{_curves_title(part, groups)}: {named(part, defence)}, mean losses in phase “{phase}”"
        figure, charts = panels([s.title for s in groups], title)
        for chart, cells in zip(charts, groups.values(), strict=True):
            add_band(chart, _curve(cells, "loss_poison"), {"color": COLOURS[1], "linewidth": 1.5}, "poisoned images")
            clean = {"color": COLOURS[0], "linewidth": 1.5, "linestyle": "--"}
            add_band(chart, _curve(cells, "loss_clean"), clean, "clean images")
            chart.set_ylim(bottom=0)
            name_epochs(chart)
        figure.supylabel("Loss, nats", size=FONT)
        add_legend(figure, charts)
        yield f"loss-curves {defence}", figure
