"""How the figures of a grid are drawn: palette, small charts, lines, bands, legends, files."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antibackdoor.benchmark.summary import Stat, stat_of
from antibackdoor.files import atomic_write_bytes
from antibackdoor.serialising import write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "COLOURS",
    "FAINT",
    "FONT",
    "INK",
    "MARKERS",
    "STYLE",
    "add_band",
    "add_legend",
    "add_line",
    "name_epochs",
    "name_steps",
    "new_figure",
    "panels",
    "save",
    "set_limits",
    "slug",
    "style_of",
    "unique",
]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b8860b", "#000000", "#7b8794")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h", "d", "8")
INK, FAINT, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
FONT = 9.0  # points
_DPI = 160

STYLE: dict[str, Any] = {
    "font.size": FONT,
    "axes.titlesize": FONT + 0.5,
    "figure.titlesize": FONT + 2,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "axes.axisbelow": True,
    "text.parse_math": False,  # a "$" in a label is a "$"
    "svg.fonttype": "none",
    "svg.hashsalt": "antibackdoor",  # the same records give the same file
}


def slug(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "figure"


def unique(name: str, names: set[str]) -> str:
    """Return a name that is not taken yet, and take it."""
    found, number = name, 2
    while found in names:
        found, number = f"{name}-{number}", number + 1
    names.add(found)
    return found


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and SVG, each whole or not at all.

    Raises:
        StorageError: The folder cannot be written.
    """
    image, drawing = io.BytesIO(), io.StringIO()
    figure.savefig(image, format="png", dpi=_DPI, metadata={"Software": None})
    figure.savefig(drawing, format="svg", metadata=dict.fromkeys(("Date", "Creator")))
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    write_text(svg, drawing.getvalue())
    atomic_write_bytes(png, image.getvalue())
    return [png, svg]


def new_figure(width: float, height: float, title: str) -> Any:
    """Return an empty figure of a size in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(_wrapped(title, width, FONT + 2))
    return figure


def _wrapped(text: str, width: float, size: float) -> str:
    """Break a title into lines that fit a width in inches at a font size in points."""
    return textwrap.fill(text, max(12, int(72 * width / (0.58 * size))), break_long_words=False)


def panels(titles: Sequence[str], title: str, *, columns: int = 4) -> tuple[Any, list[Any]]:
    """Return a figure with one small chart a title."""
    columns = min(columns, len(titles))
    rows = math.ceil(len(titles) / columns)
    figure = new_figure(max(4.6, 2.5 * columns + 0.4), 2.2 * rows + 1.1, title)
    charts = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for chart in charts[len(titles) :]:
        chart.remove()
    for chart, name in zip(charts, titles, strict=False):
        chart.set_title(_wrapped(name, figure.get_figwidth() / columns - 0.4, FONT + 0.5))
        chart.grid(True)
    return figure, charts[: len(titles)]


def add_legend(figure: Any, charts: Iterable[Any], title: str | None = None) -> None:
    """Put the keys of all charts below them, each once, in as many columns as fit."""
    keys: dict[str, Any] = {}
    for chart in charts:
        for handle, label in zip(*chart.get_legend_handles_labels(), strict=True):
            keys.setdefault(label, handle)
    points = 0.62 * FONT * max(map(len, keys), default=1) + 45
    columns = max(1, min(len(keys), int(72 * figure.get_figwidth() / points)))
    figure.legend(keys.values(), keys, loc="outside lower center", ncols=columns, title=title)


def style_of(number: int) -> dict[str, Any]:
    """Return how the member of that number is drawn; colour is never the only difference."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": "-" if number < len(COLOURS) else "--",
        "markersize": 4.5,
        "linewidth": 1.3,
    }


def add_line(chart: Any, stats: Sequence[Stat | None], style: Mapping[str, Any], label: str) -> None:
    """Draw one line over equally spaced settings, with the standard deviation."""
    places = [place for place, stat in enumerate(stats) if stat is not None]
    known = [stat for stat in stats if stat is not None]
    if known:
        chart.errorbar(
            places,
            [100 * stat.mean for stat in known],
            yerr=[100 * (stat.sd or 0.0) for stat in known],
            capsize=2,
            elinewidth=0.8,
            label=label,
            **style,
        )


def name_steps(chart: Any, labels: Sequence[str], name: str) -> None:
    """Name the equally spaced settings of a chart."""
    chart.set_xticks(range(len(labels)), labels, rotation=90 if len(labels) > 6 else 0)
    chart.set_xlim(-0.4, len(labels) - 0.6)
    chart.set_xlabel(name)


def set_limits(charts: Sequence[Any], metrics: Sequence[str]) -> None:
    """Give clean accuracy an axis of its own, the same in all charts, and everything else 0 to 100 %."""
    zoomed = [chart for chart, metric in zip(charts, metrics, strict=True) if metric == "ca" and chart.has_data()]
    low = min((chart.dataLim.y0 for chart in zoomed), default=0.0)
    high = max((chart.dataLim.y1 for chart in zoomed), default=100.0)
    for chart in charts:
        chart.set_ylim(*((max(-4.0, low - 4), min(104.0, high + 4)) if chart in zoomed else (-4.0, 104.0)))


def add_band(chart: Any, curves: NDArray[np.float64], style: Mapping[str, Any], label: str) -> None:
    """Draw the mean over the seeds, and the standard deviation as a band."""
    stats = [stat_of([float(v) for v in column if math.isfinite(v)]) for column in curves.T]
    epochs = np.arange(1, len(stats) + 1)
    mean = np.array([math.nan if stat is None else stat.mean for stat in stats])
    spread = np.array([0.0 if stat is None else stat.sd or 0.0 for stat in stats])
    chart.plot(epochs, mean, label=label, **style)
    chart.fill_between(epochs, mean - spread, mean + spread, color=style["color"], alpha=0.18, linewidth=0)


def name_epochs(chart: Any) -> None:
    """Let an axis count epochs."""
    from matplotlib.ticker import MaxNLocator

    chart.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    chart.set_xlabel("Epoch")
