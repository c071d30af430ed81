"""Whether a grid still gives what it gave: figures against committed ones, inside their spread."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from antibackdoor.benchmark.reading import mapping

__all__ = ["compare"]


@dataclass(frozen=True)
class _Figure:
    """A figure that is held against the reference: what it is called, and how far it may be off at the most."""

    title: str
    most: float


_FIGURES = {
    "ca": _Figure("clean accuracy", 0.05),
    "asr": _Figure("attack success", 0.2),
    "ra": _Figure("robust accuracy", 0.2),
    "precision": _Figure("precision", 0.2),
    "recall": _Figure("recall", 0.2),
    "fpr": _Figure("false positive rate", 0.05),
}
# What a figure may always be off, and what it may where the reference has one seed and therefore no spread.
_LEAST, _ALONE = 0.02, 0.05
_Group: TypeAlias = tuple[str, str, str, str, str]


@dataclass
class _Cells:
    """The cells of one setting and defence that are done."""

    seeds: list[int] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _FIGURES})
    verdicts: Counter[str] = field(default_factory=Counter)
    settings: dict[str, str] = field(default_factory=dict)


def compare(records: Sequence[Mapping[str, object]], reference: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what differs, one line each; an empty list means that nothing does.

    A figure is a mean over seeds. It may be as far from the reference's mean as three standard deviations of the
    reference over its seeds, but two points at the least, and at the most five points for clean accuracy and false
    positives, twenty for the others, since a figure that differs that much from seed to seed would excuse anything.
    Where the reference has one seed, five points are allowed. Seeds, settings and verdicts must be those of the
    reference.

    Args:
        records: Cells of the grid as it is now.
        reference: Cells to hold it against.
    """
    now, before = _by_group(records), _by_group(reference)
    lines = [f"{_title(_group(record))}: failed: {_error(record)}" for record in records if record["status"] != "done"]
    lines += [f"{_title(group)}: not in the reference" for group in now if group not in before]
    for group, expected in before.items():
        if group in now:
            lines += [f"{_title(group)}: {text}" for text in _differences(now[group], expected)]
        else:
            lines.append(f"{_title(group)}: in the reference, but not here")
    return lines


def _differences(cells: _Cells, expected: _Cells) -> Iterator[str]:
    for name, value in expected.settings.items():
        if name in cells.settings and cells.settings[name] != value:
            yield f"{name} is {cells.settings[name]}, in the reference {value}"
    missing = sorted(set(expected.seeds) - set(cells.seeds))
    if missing:
        yield f"seed {', '.join(map(str, missing))}: in the reference, but not here"
    if not missing and sorted(cells.seeds) == sorted(expected.seeds) and cells.verdicts != expected.verdicts:
        yield f"verdicts {_counted(cells.verdicts)}, reference {_counted(expected.verdicts)}"
    for name, figure in _FIGURES.items():
        yield from _difference(figure, cells.figures[name], expected.figures[name])


def _difference(figure: _Figure, values: Sequence[float], reference: Sequence[float]) -> Iterator[str]:
    if not values or not reference:
        if values or reference:
            yield f"{figure.title} {'was not measured here' if reference else 'is not in the reference'}"
        return
    mean, expected = statistics.fmean(values), statistics.fmean(reference)
    allowed = _ALONE if len(reference) == 1 else min(max(3 * statistics.stdev(reference), _LEAST), figure.most)
    if abs(mean - expected) > allowed + 1e-9:
        yield (
            f"{figure.title} {100 * mean:.1f} % (n {len(values)}), reference {100 * expected:.1f} ± "
            f"{100 * allowed:.1f} % (n {len(reference)})"
        )


def _by_group(records: Sequence[Mapping[str, object]]) -> dict[_Group, _Cells]:
    found: dict[_Group, _Cells] = {}
    for record in records:
        metrics = record["metrics"]
        if record["status"] != "done" or not isinstance(metrics, Mapping):
            continue
        cells = found.setdefault(_group(record), _Cells())
        if isinstance(seed := mapping(record["cell"]).get("seed"), int):
            cells.seeds.append(seed)
        if verdict := record.get("verdict"):
            cells.verdicts[str(verdict)] += 1
        cells.settings |= dict(_flat(mapping(record.get("config"))))
        for name, values in cells.figures.items():
            if isinstance(value := metrics.get(name), int | float):
                values.append(float(value))
    return found


def _flat(settings: Mapping[str, object], path: str = "") -> Iterator[tuple[str, str]]:
    """Return the settings of a cell that decide its result, by path; the seed is the cell's own."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        elif path or name not in ("seed", "device"):
            yield f"{path}{name}", str(value)


def _counted(verdicts: Counter[str]) -> str:
    return ", ".join(f"{verdict!r} {count}x" for verdict, count in sorted(verdicts.items())) or "none"


def _group(record: Mapping[str, object]) -> _Group:
    names = record["cell"]
    if not isinstance(names, Mapping):
        return ("", "", "", "", "")
    keys = ("data", "attack_label", "rate", "defence_label", "model")
    data, attack, rate, defence, model = ("" if names[key] is None else str(names[key]) for key in keys)
    return data, attack, rate, defence, model


def _title(group: _Group) -> str:
    data, attack, rate, defence, model = group
    return f"{data} {attack}{'@' if rate else ''}{rate} {defence} {model}"


def _error(record: Mapping[str, object]) -> str:
    error = record["error"]
    return f"{error['type']}: {error['message']}" if isinstance(error, Mapping) else "no reason recorded"
