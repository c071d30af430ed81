"""The figures that follow a hyper-parameter or the rate of poison."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from antibackdoor.benchmark.charts import FAINT, add_legend, add_line, name_steps, panels, set_limits, style_of
from antibackdoor.benchmark.figure_part import METRICS, Drawing, Part, named
from antibackdoor.benchmark.reading import MeasuredCell, Setting
from antibackdoor.benchmark.summary import stat_of

__all__ = ["by_gamma", "by_rate", "by_share", "by_turning_epoch"]

_FLAGGED = (("precision", "Poison among the flagged, %"), ("recall", "Flagged among the poison, %"))

Value: TypeAlias = Callable[[MeasuredCell], float | None]


def _sweeps(part: Part, value: Value, fields: Sequence[str]) -> list[tuple[str, list[MeasuredCell]]]:
    """Return the groups of cells that differ in some hyper-parameter of their defence alone, with their names.

    Args:
        part: Where to look.
        value: The hyper-parameter of a cell, or None.
        fields: Its names in the configuration.
    """
    groups: dict[tuple[tuple[str, str], ...], list[MeasuredCell]] = {}
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
    def value(cell: MeasuredCell) -> float | None:
        given = cell.section("defence").get(field)
        return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else None

    return value


def _turning_epoch(cell: MeasuredCell) -> float | None:
    """Return the number of epochs before the isolation."""
    epochs = _setting_of("isolation_epochs")(cell)
    return _setting_of("turning_epoch")(cell) if epochs is None else epochs


def _swept(
    part: Part,
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


def by_gamma(part: Part) -> Iterator[Drawing]:
    """Draw how isolation precision follows gamma."""
    metrics = (("precision", "Isolation precision, %"),)
    yield from _swept(part, "precision-by-gamma", _setting_of("gamma"), ["gamma"], metrics, "gamma, nats", False)


def by_turning_epoch(part: Part) -> Iterator[Drawing]:
    """Draw how isolation precision follows the number of epochs before the isolation."""
    metrics, fields = (("precision", "Isolation precision, %"),), ["isolation_epochs", "turning_epoch"]
    yield from _swept(part, "precision-by-turning-epoch", _turning_epoch, fields, metrics, "Turning epoch", False)


def by_share(part: Part) -> Iterator[Drawing]:
    """Draw how attack success and clean accuracy follow the isolated share."""
    yield from _swept(part, "isolation-share", _setting_of("share"), ["share"], METRICS, "Isolated images, %", True)


def by_rate(part: Part) -> Iterator[Drawing]:
    """Draw how accuracy and attack success follow the rate, and for defences that flag images, how those do."""
    flagging = [d for d in part.defences if any(part.stat(s, d, "precision") for s in part.attacked)]
    yield from _rates(part, "poisoning-rate", METRICS, list(dict.fromkeys((*part.defences, "control"))))
    yield from _rates(part, "isolation-by-rate", _FLAGGED, flagging)


def _rates(part: Part, name: str, metrics: Sequence[tuple[str, str]], defences: Sequence[str]) -> Iterator[Drawing]:
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
            add_line(chart, [part.stat(s, defence, metric) for s in settings], style, named(part, defence))
        whole = "Poisoned images of the class, %" if settings[0].of_class else "Poisoned images, %"
        name_steps(chart, [f"{100 * (s.rate or 0):.4g}" for s in settings], whole)
        chart.set_ylabel(label)
    set_limits(charts, [metric for *_, metric, _ in swept])
    add_legend(figure, charts)
    yield name, figure
