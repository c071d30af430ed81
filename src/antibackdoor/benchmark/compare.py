"""Whether a grid still gives what it gave: figures against committed ones, inside their spread."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TypeAlias

__all__ = ["LEAST", "compare"]

LEAST = 0.02
_FIGURES = {"ca": "clean accuracy", "asr": "attack success", "ra": "robust accuracy"}
_Group: TypeAlias = tuple[str, str, str, str, str]


def compare(records: Sequence[Mapping[str, object]], reference: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what differs, one line each; an empty list means that nothing does.

    A figure is a mean over seeds. It may be as far from the reference's mean as three standard deviations of the
    reference over its seeds, or two points where that is more.

    Args:
        records: Cells of the grid as it is now.
        reference: Cells to hold it against.
    """
    now, before = _figures(records), _figures(reference)
    lines = [f"{_title(_group(record))}: failed: {_error(record)}" for record in records if record["status"] != "done"]
    lines += [f"{_title(group)}: not in the reference" for group in now if group not in before]
    for group, figures in before.items():
        if group not in now:
            lines.append(f"{_title(group)}: in the reference, but not here")
            continue
        for name, title in _FIGURES.items():
            lines += _difference(f"{_title(group)}: {title}", now[group][name], figures[name])
    return lines


def _difference(title: str, values: Sequence[float], reference: Sequence[float]) -> list[str]:
    if not values or not reference:
        which = "was not measured here" if reference else "is not in the reference"
        return [f"{title} {which}"] if values or reference else []
    mean, expected = statistics.fmean(values), statistics.fmean(reference)
    spread = statistics.stdev(reference) if len(reference) > 1 else 0.0
    allowed = max(3 * spread, LEAST)
    if abs(mean - expected) <= allowed + 1e-9:
        return []
    return [
        f"{title} {100 * mean:.1f} % (n {len(values)}), reference {100 * expected:.1f} ± {100 * allowed:.1f} % "
        f"(n {len(reference)})"
    ]


def _figures(records: Sequence[Mapping[str, object]]) -> dict[_Group, dict[str, list[float]]]:
    found: dict[_Group, dict[str, list[float]]] = defaultdict(lambda: {name: [] for name in _FIGURES})
    for record in records:
        metrics = record["metrics"]
        if record["status"] == "done" and isinstance(metrics, Mapping):
            for name, values in found[_group(record)].items():
                if isinstance(value := metrics[name], int | float):
                    values.append(float(value))
    return dict(found)


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
