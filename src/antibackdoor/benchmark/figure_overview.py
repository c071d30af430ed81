"""The figures with everything in them: heat maps, and one metric against the other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from antibackdoor.benchmark.charts import COLOURS, FAINT, FONT, INK, MARKERS, new_figure
from antibackdoor.benchmark.figure_part import METRICS, Drawing, Part, named

__all__ = ["heat_maps", "scatter"]


def heat_maps(part: Part) -> Iterator[Drawing]:
    """Draw attack success and clean accuracy of every defence under every attack."""
    rows = [*(("control",) if any(s in part.summary.controls for s in part.settings) else ()), *part.defences]
    names = [row if row not in part.defences else part.summary.heading(row) for row in rows]
    shown = [(metric, title, part.attacked if metric == "asr" else part.settings) for metric, title in METRICS]
    shown = [(metric, title, columns) for metric, title, columns in shown if columns]
    widest = max(len(columns) for _, _, columns in shown)
    label = 0.085 * max(map(len, names))
    beside = widest <= 5 and len(shown) > 1
    width, height = (
        label + 0.62 * widest + 1.1,
        0.34 * len(rows) + 0.08 * max(len(s.title) for s in part.settings) + 0.6,
    )
    figure = new_figure(
        *((2 * width, height + 0.4) if beside else (max(5, width), len(shown) * height + 0.4)), part.title(None)
    )
    charts = figure.subplots(*((1, len(shown)) if beside else (len(shown), 1)), squeeze=False).ravel()
    for chart, (metric, title, columns) in zip(charts, shown, strict=True):
        stats = [[part.stat(setting, row, metric) for setting in columns] for row in rows]
        values = np.array([[math.nan if stat is None else 100 * stat.mean for stat in line] for line in stats])
        measured = values[np.isfinite(values)]
        low, high = (0.0, 100.0) if metric == "asr" or not measured.size else (measured.min(), measured.max())
        image = chart.imshow(
            values, cmap="Oranges" if metric == "asr" else "Blues", vmin=low, vmax=max(high, low + 1), aspect="auto"
        )
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                dark = np.isfinite(value) and image.norm(value) > 0.6
                text = f"{value:.1f}" if np.isfinite(value) else "–"
                chart.text(column, row, text, ha="center", va="center", color="white" if dark else INK, size=FONT - 1)
        chart.set_xticks(
            range(len(columns)), [s.title for s in columns], rotation=45, ha="right", rotation_mode="anchor"
        )
        chart.set_yticks(range(len(rows)), names)
        chart.tick_params(length=0)
        chart.spines[:].set_visible(False)
        chart.set_title(title)
        figure.colorbar(image, ax=chart, fraction=0.05, aspect=12).outline.set_visible(False)
    yield "heat-map", figure


def scatter(part: Part) -> Iterator[Drawing]:
    """Draw clean accuracy against attack success, a point for every defence, attack and rate."""
    from matplotlib.lines import Line2D

    if not any(part.stat(s, d, "asr") for s in part.attacked for d in part.defences):
        return
    attacks = list(dict.fromkeys(s.attack for s in part.attacked))
    figure = new_figure(8.6, max(4.4, 0.2 * (len(part.defences) + len(attacks)) + 1.2), part.title())
    chart = figure.subplots()
    chart.grid(True, axis="both")
    colours = {"control": FAINT} | {d: COLOURS[i % (len(COLOURS) - 1)] for i, d in enumerate(part.defences)}
    hollow = {d for i, d in enumerate(part.defences) if i >= len(COLOURS) - 1}
    seen = []
    for defence, colour in colours.items():
        for setting in part.attacked:
            ca, asr = part.stat(setting, defence, "ca"), part.stat(setting, defence, "asr")
            if ca is None or asr is None:
                continue
            seen.append(defence)
            chart.errorbar(
                100 * asr.mean,
                100 * ca.mean,
                xerr=100 * (asr.sd or 0.0),
                yerr=100 * (ca.sd or 0.0),
                color=colour,
                marker=MARKERS[attacks.index(setting.attack) % len(MARKERS)],
                markerfacecolor="white" if defence in hollow else colour,
                markeredgecolor=colour,
                markersize=6.5,
                elinewidth=0.7,
                alpha=0.9,
            )
    chart.set_xlim(-4, 104)
    chart.set_xlabel(METRICS[0][1])
    chart.set_ylabel(METRICS[1][1])

    def key(label: str, **style: Any) -> Any:
        return Line2D([], [], label=label, linestyle="", **style)

    fills = {d: "white" if d in hollow else c for d, c in colours.items()}
    defences = [
        key(named(part, d), marker="o", color=c, markerfacecolor=fills[d]) for d, c in colours.items() if d in seen
    ]
    shapes = [key(attack, marker=MARKERS[i % len(MARKERS)], color=INK) for i, attack in enumerate(attacks)]
    rates = len({s.rate for s in part.attacked}) > 1
    heads = [key("Defence"), key("Attack, each rate a point" if rates else "Attack")]
    figure.legend(handles=[heads[0], *defences, heads[1], *shapes], loc="outside right upper")
    yield "accuracy-against-attack-success", figure
