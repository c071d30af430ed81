"""Two finished runs beside each other: what changed in the set, the verdict, the suspects and the figures."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from antibackdoor.csvs import as_text, lines_of
from antibackdoor.report.tables import metric_rows
from antibackdoor.stored import StoredRun
from antibackdoor.types import Json

__all__ = ["FIGURES", "Changed", "Comparison", "changes_csv", "compare_runs", "since"]

# The figures by the names that tables give them, with their names in the record.
FIGURES = {
    "Clean accuracy": "ca",
    "Clean accuracy, target class": "ca_target",
    "Attack success": "asr",
    "Robust accuracy": "ra",
    "Hold-out accuracy": "holdout_accuracy",
    "Precision": "precision",
    "Recall": "recall",
    "False alarms": "fpr",
    "AUROC": "auroc",
    "AUPRC": "auprc",
}
_MISSING = "not there"
_ORDER = ("new suspect", "no longer suspect", "suspect left out", "relabelled", "added", "left out")


@dataclass(frozen=True)
class Changed:
    """An image that the runs do not say the same of.

    Attributes:
        id: Its name in the second run, or in the first where the second lacks it.
        label: Its class there.
        change: ``new suspect``, ``no longer suspect``, ``suspect left out`` (flagged in the first, not in the second
            set), ``relabelled``, ``added`` or ``left out``.
        before: Its name and class in the first run where they differ, else an empty text.
        added: Only the second set holds it.
    """

    id: str
    label: str
    change: str
    before: str = ""
    added: bool = False


@dataclass(frozen=True)
class Comparison:
    """What changed from one run to another.

    Attributes:
        verdicts: Of the first and of the second run.
        figures: Name, value in the first, value in the second run, and the difference in points where both have one.
        settings: The path of each setting that differs, with both values.
        versions: The name of each version that differs, with both.
        both: Images that both sets hold.
        renamed: How many of them have another id.
        redrawn: How many of them have other pixels (the same id stands for them).
        relabelled: How many of them are in another class.
        suspects: How many of them are suspects in both runs.
        changed: Every image that the runs do not say the same of; new suspects first.
    """

    verdicts: tuple[str, str]
    figures: tuple[tuple[str, str, str, str], ...]
    settings: tuple[tuple[str, Json, Json], ...]
    versions: tuple[tuple[str, Json, Json], ...]
    both: int
    renamed: int
    redrawn: int
    relabelled: int
    suspects: int
    changed: tuple[Changed, ...]

    def count(self, change: str) -> int:
        """Return of how many images this is said."""
        return sum(entry.change == change for entry in self.changed)


def compare_runs(before: StoredRun, after: StoredRun) -> Comparison:
    """Compare two finished runs.

    An image of one set is that of the other which has the same pixels, and the same id if there are several; where none
    has the same pixels, or they were not kept, the one with the same id.

    Args:
        before: The first run.
        after: The second run.

    Returns:
        What changed from the first to the second.
    """
    pairs = _pairs(before, after)
    changed = sorted(_changed(before, after, pairs), key=lambda entry: _ORDER.index(entry.change))
    told = before.content is not None and after.content is not None
    return Comparison(
        verdicts=(before.record.verdict or "not judged", after.record.verdict or "not judged"),
        figures=tuple(_figures(before, after)),
        settings=tuple(_differences(before.record.config, after.record.config)),
        versions=tuple(_differences(dict(before.record.versions), dict(after.record.versions))),
        both=len(pairs),
        renamed=sum(before.ids[old] != after.ids[new] for new, old in pairs.items()),
        redrawn=sum(_content(before, old) != _content(after, new) for new, old in pairs.items()) if told else 0,
        relabelled=sum(_label(before, old) != _label(after, new) for new, old in pairs.items()),
        suspects=sum(bool(before.flagged[old] and after.flagged[new]) for new, old in pairs.items()),
        changed=tuple(changed),
    )


def since(run: StoredRun, before: StoredRun, name: str) -> StoredRun:
    """Return a run in which nobody is flagged whom an earlier one had flagged already.

    Args:
        run: The run.
        before: The earlier one; images are matched as in :func:`compare_runs`.
        name: What to call the earlier one.

    Returns:
        The same run with fewer flags, and a sentence that says so. Its verdict is still that on the whole set.
    """
    known = np.zeros(len(run.ids), dtype=np.bool_)
    for row, old in _pairs(before, run).items():
        known[row] = before.flagged[old]
    flagged = run.flagged & ~known
    sentence = (
        f"New since {name}: {int(flagged.sum()):,} flagged images; {int((run.flagged & known).sum()):,} more were "
        "flagged there already and are not listed here. The verdict is on the whole set."
    )
    record = dataclasses.replace(run.record, evidence=(sentence, *run.record.evidence))
    return dataclasses.replace(run, flagged=flagged, record=record)


def changes_csv(comparison: Comparison) -> str:
    """Return the images that changed as a table with the columns change, id, label, before."""
    rows = [
        (entry.change, as_text(entry.id), as_text(entry.label), as_text(entry.before)) for entry in comparison.changed
    ]
    return lines_of([("change", "id", "label", "before"), *rows])


def _content(run: StoredRun, row: int) -> bytes:
    return b"" if run.content is None else run.content[row].tobytes()


def _label(run: StoredRun, row: int) -> str:
    return run.classes[int(run.labels[row])]


def _pairs(before: StoredRun, after: StoredRun) -> dict[int, int]:
    """Return the rows of the first run by those of the second that hold the same image."""
    keys: list[Callable[[StoredRun, int], Hashable]] = [lambda run, row: run.ids[row]]
    if before.content is not None and after.content is not None:
        keys = [lambda run, row: (run.ids[row], _content(run, row)), _content, *keys]
    pairs: dict[int, int] = {}
    old_left, new_left = list(range(len(before.ids))), list(range(len(after.ids)))
    for key in keys:
        waiting = defaultdict(list)
        for row in reversed(old_left):
            waiting[key(before, row)].append(row)
        for row in new_left:
            if held := waiting.get(key(after, row)):
                pairs[row] = held.pop()
        taken = set(pairs.values())
        old_left = [row for row in old_left if row not in taken]
        new_left = [row for row in new_left if row not in pairs]
    return pairs


def _changed(before: StoredRun, after: StoredRun, pairs: Mapping[int, int]) -> Iterator[Changed]:
    for new, id_ in enumerate(after.ids):
        label, old = _label(after, new), pairs.get(new)
        if old is None:
            yield Changed(id_, label, "new suspect" if after.flagged[new] else "added", added=True)
            continue
        label_before = _label(before, old)
        moved = id_ != before.ids[old] or label != label_before
        was = f"{before.ids[old]} ({label_before})" if moved else ""
        if after.flagged[new] != before.flagged[old]:
            yield Changed(id_, label, "new suspect" if after.flagged[new] else "no longer suspect", was)
        elif label != label_before:
            yield Changed(id_, label, "relabelled", was)
    kept = set(pairs.values())
    for old, id_ in enumerate(before.ids):
        if old not in kept:
            change = "suspect left out" if before.flagged[old] else "left out"
            yield Changed(id_, _label(before, old), change)


def _figures(before: StoredRun, after: StoredRun) -> Iterator[tuple[str, str, str, str]]:
    old, new = ({row.name: row.value for row in metric_rows(run.record.metrics)} for run in (before, after))
    for name, field in FIGURES.items():
        if name in old or name in new:
            values = [getattr(run.record.metrics, field) for run in (before, after)]
            points = "" if None in values else f"{100 * (values[1] - values[0]):+.1f} points"
            yield name, old.get(name, "-"), new.get(name, "-"), points


def _differences(before: Json, after: Json, path: str = "") -> Iterator[tuple[str, Json, Json]]:
    """Yield what differs between two trees of settings, leaf by leaf."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(
                before.get(key, _MISSING), after.get(key, _MISSING), f"{path}.{key}" if path else str(key)
            )
    elif before != after:
        yield path, before, after
