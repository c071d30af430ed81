"""Loss curves and score histograms as inline SVG: matplotlib's object API, no state left behind."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.stored import StoredRun

__all__ = [
    "FLOOR",
    "INK",
    "Band",
    "Group",
    "flag_groups",
    "loss_band",
    "loss_chart",
    "phase_spans",
    "phases_fit",
    "score_chart",
    "truth_groups",
]

FLOOR = 1e-4  # nats; below it an image is simply learned, and a log axis would show nothing but this
_WIDTH, _HEIGHT = 5.2, 3.1  # inches; narrow, so that the text stays readable when a phone shrinks the chart
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.125, 0.975, 0.165, 0.90  # the plotting area, as fractions
_FONT = 9.5  # points
_MOST_EPOCHS = 300  # drawn; more would be thinner than a pixel
_BINS = 50
INK, _FAINT = "#1f2933", "#7b8794"


@dataclass(frozen=True, eq=False)
class Group:
    """Some of the images, with the way they are drawn everywhere on the page.

    Attributes:
        name: In words, such as "flagged".
        members: bool (N,).
        colour: As #rrggbb; the palette stays apart under the common colour blindnesses.
        style: "solid", "dashed" or "dotted", so that colour is never the only difference.
    """

    name: str
    members: NDArray[np.bool_]
    colour: str
    style: str


@dataclass(frozen=True, eq=False)
class Band:
    """The spread of a group's losses; NaN in epochs where no member was trained on.

    Attributes:
        low: float64 (E,), 10th percentile, in nats.
        middle: float64 (E,), median.
        high: float64 (E,), 90th percentile.
    """

    low: NDArray[np.float64]
    middle: NDArray[np.float64]
    high: NDArray[np.float64]


def flag_groups(view: StoredRun) -> tuple[Group, ...]:
    """Return kept and flagged images, groups without a member left out."""
    groups = (
        Group("kept", ~view.flagged, "#0072b2", "dashed"),
        Group("flagged", view.flagged, "#c44e00", "solid"),
    )
    return tuple(group for group in groups if group.members.any())


def truth_groups(view: StoredRun) -> tuple[Group, ...]:
    """Return clean, cover and poison images, empty groups left out; none where the truth is not known."""
    if view.poison is None:
        return ()
    groups = (
        Group("clean", ~view.poison & ~view.covered, "#009e73", "dashed"),
        Group("cover", view.covered & ~view.poison, "#8a6d00", "dotted"),
        Group("poison", view.poison, "#882255", "solid"),
    )
    return tuple(group for group in groups if group.members.any())


def loss_band(losses: NDArray[np.float32], members: NDArray[np.bool_]) -> Band:
    """Return the 10th, 50th and 90th percentile of a group's losses in every epoch.

    Args:
        losses: float32 (E, N), in nats; anything but a finite number is left out.
        members: bool (N,).
    """
    spread = np.full((3, losses.shape[0]), np.nan)
    for epoch, row in enumerate(losses):  # by rows: numpy's NaN-aware percentiles are slow and warn on empty rows
        values = row[members]
        values = values[np.isfinite(values)].astype(np.float64)
        if values.size:
            spread[:, epoch] = np.percentile(values, (10, 50, 90))
    return Band(*spread)


def phase_spans(phases: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
    """Return (name, first epoch, last epoch) of each run of equal phase names, epochs counted from 1.

    The phases of a detector that stops after every epoch ("detector 1", "detector 2") are one.
    """
    spans, first = [], 1
    for name, same in itertools.groupby("detector" if one.startswith("detector ") else one for one in phases):
        last = first + len(list(same)) - 1
        spans.append((name, first, last))
        first = last + 1
    return tuple(spans)


def phases_fit(phases: Sequence[str]) -> bool:
    """Say whether every phase name fits above its part of the chart; if not, the chart shows numbers."""
    points = 72 * _WIDTH * (_RIGHT - _LEFT) / max(1, len(phases))
    return all(
        # Names outside ASCII may lack a glyph in the font that matplotlib lays text out with.
        name.isascii() and name.isprintable() and 0.62 * _FONT * len(name) < points * (last - first + 1)
        for name, first, last in phase_spans(phases)
    )


def loss_chart(
    chart_id: str,
    phases: Sequence[str],
    groups: Sequence[Group],
    bands: Sequence[Band],
    limits: Sequence[Band],
) -> str:
    """Draw the median loss and the 10 to 90 % band of each group over the epochs.

    Args:
        chart_id: Prefix of every id in the SVG, unique on the page.
        phases: E names.
        groups: What to draw, the last on top.
        bands: One a group.
        limits: The bands that set the loss axis; charts given the same ones can be compared by eye.

    Returns:
        An ``<svg>`` element.
    """
    with _axes(chart_id) as (axes, output):
        low, high = _loss_limits(limits)
        log = high / low > 20
        axes.set_yscale("log" if log else "linear")
        axes.set_ylim(low / 1.3 if log else 0.0, high * (1.3 if log else 1.05))
        axes.set_xlim(0.5, len(phases) + 0.5)
        for group, band in zip(groups, bands, strict=True):
            # A new phase mostly starts from new weights: the line must not run on.
            for _, first, last in phase_spans(phases):
                _draw_band(axes, group, band, first, last, step=-(-len(phases) // _MOST_EPOCHS))
        _name_phases(axes, phases)
        _whole_numbers(axes.xaxis)
        axes.set_xlabel("Epoch")
        axes.set_ylabel("Loss, nats")
    return output.getvalue()


def _draw_band(axes: Any, group: Group, band: Band, first: int, last: int, *, step: int) -> None:
    """Draw a group's losses over the epochs of one phase, of which every so many."""
    part = slice(first - 1, last, step)
    epochs = np.arange(first, last + 1)[::step]
    lower, middle, upper = (np.maximum(v[part], FLOOR) for v in (band.low, band.middle, band.high))
    axes.fill_between(epochs, lower, upper, color=group.colour, alpha=0.16, linewidth=0)
    marker = "o" if np.isfinite(band.middle[part]).sum() == 1 else ""  # one epoch makes no line
    axes.plot(epochs, middle, color=group.colour, linestyle=group.style, linewidth=1.6, marker=marker, markersize=4)


def _name_phases(axes: Any, phases: Sequence[str]) -> None:
    """Write the names of the phases above the chart, or their numbers, with a line between two."""
    shown = phases_fit(phases)
    for number, (name, first, last) in enumerate(phase_spans(phases), start=1):
        if number > 1:
            axes.axvline(first - 0.5, color=_FAINT, linewidth=0.8)
        axes.text(
            (first + last) / 2,
            1.03,
            name if shown else str(number),
            transform=axes.get_xaxis_transform(),
            horizontalalignment="center",
            color=INK,
            parse_math=False,
        )


def score_chart(chart_id: str, view: StoredRun, groups: Sequence[Group]) -> str:
    """Draw how many images of each group have which score, on a log count axis, and the threshold.

    Args:
        chart_id: Prefix of every id in the SVG, unique on the page.
        view: Scores and flags.
        groups: What to draw, the last on top.

    Returns:
        An ``<svg>`` element, or "" where no image has a score.
    """
    if not view.scored.any():
        return ""
    scores = view.scores.astype(np.float64)
    low, high = float(scores[view.scored].min()), float(scores[view.scored].max())
    room = 1e-6 * max(abs(low), abs(high))
    if high - low <= room:  # one value, or as good as one: bins of no width cannot be drawn
        low, high = low - max(0.5, 1e3 * room), high + max(0.5, 1e3 * room)
    edges = _edges(low, high, view.threshold)
    top = 1
    with _axes(chart_id, top=0.98) as (axes, output):
        axes.set_yscale("log")
        for group in groups:
            counts, _ = np.histogram(scores[group.members & view.scored], bins=edges)
            top = max(top, int(counts.max()))
            heights = np.maximum(counts, 0.5)  # the axis starts here, so an empty bin has no height
            axes.stairs(heights, edges, baseline=0.5, fill=True, color=group.colour, alpha=0.2, linewidth=0)
            axes.stairs(heights, edges, baseline=0.5, color=group.colour, linestyle=group.style, linewidth=1.4)
        if view.threshold is not None:
            axes.axvline(view.threshold, color=INK, linewidth=1.1)
        axes.set_ylim(0.5, top * 1.8)
        axes.set_xlim(edges[0], edges[-1])
        _plain_numbers(axes.xaxis)
        axes.set_xlabel("Score (higher is more suspect)")
        axes.set_ylabel("Images")
    return output.getvalue()


def _edges(low: float, high: float, threshold: float | None) -> NDArray[np.float64]:
    """Return the edges of the bins from low to high, one of them on the threshold."""
    edges = np.linspace(low, high, _BINS + 1)
    if threshold is None:
        return edges
    # No bin may straddle it: kept images would seem to lie beyond it.
    width = (high - low) / _BINS
    below = int((threshold - low) / width) + 1
    above = int((high - threshold) / width) + 1
    return threshold + width * np.arange(-below, above + 1, dtype=np.float64)


def _loss_limits(bands: Sequence[Band]) -> tuple[float, float]:
    """Return the lowest and highest finite value of the bands, at least FLOOR and apart."""
    values = np.concatenate([np.stack((band.low, band.high)).ravel() for band in bands])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.1, 1.0
    low = max(FLOOR, float(values.min()))
    return low, max(low * 1.5, float(values.max()))


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def _plain_numbers(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}".replace("-", "−")))


@contextmanager
def _axes(chart_id: str, top: float = _TOP) -> Iterator[tuple[Any, io.StringIO]]:
    """Yield axes to draw on and the text that holds the finished ``<svg>`` element once the block ends."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    output = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the page
        settings = {"svg.fonttype": "none", "svg.hashsalt": chart_id, "font.size": _FONT}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        axes = figure.add_axes((_LEFT, _BOTTOM, _RIGHT - _LEFT, top - _BOTTOM))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_FAINT)
        axes.tick_params(colors=INK, which="both", labelsize=_FONT - 0.5)
        axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        yield axes, output
        if axes.get_yscale() == "log":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        raw = io.StringIO()
        figure.savefig(raw, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    output.write(_inline(raw.getvalue(), chart_id))


def _inline(svg: str, chart_id: str) -> str:
    """Return matplotlib's SVG document as an element for a page: no prologue or size, ids unique."""
    svg = svg[svg.index("<svg") :]
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))

    def rename(tag: re.Match[str]) -> str:
        text = re.sub(r' id="([^"]*)"', lambda m: f' id="{chart_id}-{m[1]}"' if m[1] in used else "", tag.group())
        text = re.sub(r'(href="|url\()#', rf"\1#{chart_id}-", text)
        return re.sub(r"font-family:[^;\"]*;? ?", "", text)  # the page's own fonts

    body = re.sub(r"<[^>]+>", rename, body)
    body = re.sub(r"\s*\n\s*", "\n", body)
    return f'<svg {box.group() if box else ""} role="img" aria-labelledby="{chart_id}-title">{body}'
