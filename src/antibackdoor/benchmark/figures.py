"""The figures of a grid, as PNG and SVG: only those that its records hold the data for."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from antibackdoor.benchmark.charts import (
    COLOURS,
    FAINT,
    FONT,
    INK,
    MARKERS,
    STYLE,
    add_band,
    add_legend,
    add_line,
    name_epochs,
    name_steps,
    new_figure,
    panels,
    save,
    set_limits,
    slug,
    style_of,
    unique,
)
from antibackdoor.benchmark.reading import Run, Setting, mapping, read
from antibackdoor.benchmark.summary import Stat, Summary, stat_of, summarise
from antibackdoor.storage import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["write_figures"]

_SHARES = (("0.01", "1 %"), ("0.05", "5 %"), ("0.1", "10 %"), ("0.2", "20 %"))
_NOTED = ".written.json"  # beside the figures: which are ours
_ENDINGS = (".png", ".svg")
_METRICS = (("asr", "Attack success, %"), ("ca", "Clean accuracy, %"))
_FLAGGED = (("precision", "Poison among the flagged, %"), ("recall", "Flagged among the poison, %"))

Drawing = tuple[str, Any]  # name of the file without its ending, and matplotlib's Figure


@dataclass(frozen=True)
class _Part:
    """The part of a grid that goes into one figure: one data set, one network.

    Attributes:
        names: Theirs.
        settings: Its rows.
        cells: Its done cells.
        summary: Of the whole grid.
    """

    names: str
    settings: tuple[Setting, ...]
    cells: tuple[Run, ...]
    summary: Summary

    def title(self, spread: str | None = "bars", cells: Sequence[Run] | None = None) -> str:
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


def write_figures(records: Sequence[Mapping[str, object]], out: Path) -> list[Path]:
    """Write the figures into OUT/figures, each as PNG and SVG.

    One of each kind for every data set and network: heat maps of attack success and clean accuracy; one against the
    other; precision of the lowest losses and the losses themselves by epoch; precision by gamma and by turning epoch;
    attack success and clean accuracy by isolation share and by poisoning rate; precision and recall by poisoning rate.
    Those that an earlier call wrote there and this one does not are removed.

    Args:
        records: The records of the cells; failed ones are left out.
        out: Folder to write to.

    Returns:
        The files. A figure that the records hold no data for is not drawn.

    Raises:
        StorageError: A record of another format, or a folder that cannot be written.
    """
    import matplotlib

    summary, done = summarise(records), tuple(cell for cell in read(records) if cell.error is None)
    groups = list(dict.fromkeys((s.data, s.model) for s in summary.settings))
    written: list[Path] = []
    names: set[str] = set()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's matplotlibrc must not change the figures
        matplotlib.rcParams.update(STYLE)
        for group in groups:
            part = _Part(
                names=", ".join(group),
                settings=tuple(s for s in summary.settings if (s.data, s.model) == group),
                cells=tuple(cell for cell in done if (cell.setting.data, cell.setting.model) == group),
                summary=summary,
            )
            for draw in _ALL if part.cells else ():
                for kind, figure in draw(part):
                    name = unique(slug(" ".join((kind, *group) if len(groups) > 1 else (kind,))), names)
                    written += save(figure, out / "figures", name)
    _remove_earlier(out / "figures", [path.name for path in written])
    return written


def _remove_earlier(folder: Path, names: Sequence[str]) -> None:
    """Remove the figures that an earlier call noted and this one did not write; note the names of this one's."""
    noted = folder / _NOTED
    try:
        earlier = json.loads(noted.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = []
    for name in earlier if isinstance(earlier, list) else []:
        if name not in names and isinstance(name, str) and Path(name).name == name and name.endswith(_ENDINGS):
            with contextlib.suppress(OSError):
                (folder / name).unlink()
    if names or noted.exists():
        write_json(noted, list(names))


def _heat_maps(part: _Part) -> Iterator[Drawing]:
    rows = [*(("control",) if any(s in part.summary.controls for s in part.settings) else ()), *part.defences]
    names = [row if row not in part.defences else part.summary.heading(row) for row in rows]
    shown = [(metric, title, part.attacked if metric == "asr" else part.settings) for metric, title in _METRICS]
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


def _scatter(part: _Part) -> Iterator[Drawing]:
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
    chart.set_xlabel(_METRICS[0][1])
    chart.set_ylabel(_METRICS[1][1])

    def key(label: str, **style: Any) -> Any:
        return Line2D([], [], label=label, linestyle="", **style)

    fills = {d: "white" if d in hollow else c for d, c in colours.items()}
    defences = [
        key(_named(part, d), marker="o", color=c, markerfacecolor=fills[d]) for d, c in colours.items() if d in seen
    ]
    shapes = [key(attack, marker=MARKERS[i % len(MARKERS)], color=INK) for i, attack in enumerate(attacks)]
    rates = len({s.rate for s in part.attacked}) > 1
    heads = [key("Defence"), key("Attack, each rate a point" if rates else "Attack")]
    figure.legend(handles=[heads[0], *defences, heads[1], *shapes], loc="outside right upper")
    yield "accuracy-against-attack-success", figure


def _named(part: _Part, defence: str) -> str:
    return part.summary.heading(defence) if defence in part.defences else defence


def _curve(cells: Sequence[Run], *path: str) -> NDArray[np.float64]:
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


def _first_phases(part: _Part) -> Iterator[tuple[str, str, dict[Setting, list[Run]]]]:
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


def _curves_title(part: _Part, groups: Mapping[Setting, Sequence[Run]]) -> str:
    return part.title("bands", [cell for cells in groups.values() for cell in cells])


def _precision_by_epoch(part: _Part) -> Iterator[Drawing]:
    for defence, phase, groups in _first_phases(part):
        title = (
            f"{_curves_title(part, groups)}: {_named(part, defence)}, precision of the lowest losses in phase “{phase}”"
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


def _losses(part: _Part) -> Iterator[Drawing]:
    for defence, phase, groups in _first_phases(part):
        title = f"{_curves_title(part, groups)}: {_named(part, defence)}, mean losses in phase “{phase}”"
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


Value = Callable[[Run], float | None]


def _sweeps(part: _Part, value: Value, fields: Sequence[str]) -> list[tuple[str, list[Run]]]:
    """Return the groups of cells that differ in some hyper-parameter of their defence alone, with their names.

    Args:
        part: Where to look.
        value: The hyper-parameter of a cell, or None.
        fields: Its names in the configuration.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for cell in part.cells:
        if value(cell) is not None and cell.setting.rate is not None:
            rest = tuple(sorted((k, str(v)) for k, v in cell.section("defence").items() if k not in fields))
            groups.setdefault(rest, []).append(cell)
    swept = {rest: cells for rest, cells in groups.items() if len({value(cell) for cell in cells}) > 1}
    sweeps = []
    for rest, cells in swept.items():
        name = dict(rest).get("name", "")
        twins = [dict(other) for other in swept if dict(other).get("name", "") == name]
        apart = [f"{k}={v}" for k, v in rest if any(twin.get(k) != v for twin in twins)]
        sweeps.append((", ".join([name, *apart]), cells))
    return sweeps


def _setting_of(field: str) -> Value:
    def value(cell: Run) -> float | None:
        given = cell.section("defence").get(field)
        return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else None

    return value


def _turning_epoch(cell: Run) -> float | None:
    """Return the number of epochs before the isolation."""
    epochs = _setting_of("isolation_epochs")(cell)
    return _setting_of("turning_epoch")(cell) if epochs is None else epochs


def _swept(
    part: _Part,
    name: str,
    value: Value,
    fields: Sequence[str],
    metrics: Sequence[tuple[str, str]],
    axis: str,
    percent: bool,
) -> Iterator[Drawing]:
    """Draw how some metrics follow a hyper-parameter, a line an attack."""
    sweeps = [
        (title, metric, label, cells)
        for title, cells in _sweeps(part, value, fields)
        for metric, label in metrics
        if any(metric in cell.figures for cell in cells)
    ]
    if not sweeps:
        return
    drawn = [cell for *_, cells in sweeps for cell in cells]
    figure, charts = panels([title for title, *_ in sweeps], part.title(cells=drawn))
    for chart, (_, metric, label, cells) in zip(charts, sweeps, strict=True):
        steps = sorted({step for cell in cells if (step := value(cell)) is not None})
        for number, setting in enumerate(part.attacked):
            own = [c for c in cells if c.setting == setting and metric in c.figures]
            stats = [stat_of([c.figures[metric] for c in own if value(c) == step]) for step in steps]
            add_line(chart, stats, style_of(number), setting.title)
        name_steps(chart, [f"{100 * step:.4g}" if percent else f"{step:.4g}" for step in steps], axis)
        chart.set_ylabel(label)
    set_limits(charts, [metric for _, metric, *_ in sweeps])
    add_legend(figure, charts)
    yield name, figure


def _by_gamma(part: _Part) -> Iterator[Drawing]:
    metrics = (("precision", "Isolation precision, %"),)
    yield from _swept(part, "precision-by-gamma", _setting_of("gamma"), ["gamma"], metrics, "gamma, nats", False)


def _by_turning_epoch(part: _Part) -> Iterator[Drawing]:
    metrics, fields = (("precision", "Isolation precision, %"),), ["isolation_epochs", "turning_epoch"]
    yield from _swept(part, "precision-by-turning-epoch", _turning_epoch, fields, metrics, "Turning epoch", False)


def _by_share(part: _Part) -> Iterator[Drawing]:
    yield from _swept(part, "isolation-share", _setting_of("share"), ["share"], _METRICS, "Isolated images, %", True)


def _by_rate(part: _Part) -> Iterator[Drawing]:
    """Draw how accuracy and attack success follow the rate, and for defences that flag images, how those do."""
    flagging = [d for d in part.defences if any(part.stat(s, d, "precision") for s in part.attacked)]
    yield from _rates(part, "poisoning-rate", _METRICS, list(dict.fromkeys((*part.defences, "control"))))
    yield from _rates(part, "isolation-by-rate", _FLAGGED, flagging)


def _rates(part: _Part, name: str, metrics: Sequence[tuple[str, str]], defences: Sequence[str]) -> Iterator[Drawing]:
    rates: dict[tuple[str, bool], list[Setting]] = {}
    for setting in part.attacked:
        rates.setdefault((setting.attack, setting.of_class), []).append(setting)
    swept = [
        (attack, settings, metric, label)
        for (attack, _), settings in rates.items()
        for metric, label in metrics
        if len(settings) > 1 and any(part.stat(s, d, metric) for s in settings for d in defences)
    ]
    if not swept:
        return
    drawn = {setting for _, settings, *_ in swept for setting in settings}
    title = part.title(cells=[c for c in part.cells if c.setting in drawn and c.defence in defences])
    figure, charts = panels([attack for attack, *_ in swept], title)
    for chart, (_, settings, metric, label) in zip(charts, swept, strict=True):
        for defence in defences:
            style = (
                style_of(part.defences.index(defence))
                if defence in part.defences
                else {"color": FAINT, "linestyle": ":", "linewidth": 1.3}
            )
            add_line(chart, [part.stat(s, defence, metric) for s in settings], style, _named(part, defence))
        whole = "Poisoned images of the class, %" if settings[0].of_class else "Poisoned images, %"
        name_steps(chart, [f"{100 * (s.rate or 0):.4g}" for s in settings], whole)
        chart.set_ylabel(label)
    set_limits(charts, [metric for *_, metric, _ in swept])
    add_legend(figure, charts)
    yield name, figure


_ALL: tuple[Callable[[_Part], Iterator[Drawing]], ...] = (
    _heat_maps,
    _scatter,
    _precision_by_epoch,
    _losses,
    _by_gamma,
    _by_turning_epoch,
    _by_share,
    _by_rate,
)
