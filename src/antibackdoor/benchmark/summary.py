"""The records of a grid's cells put together, over the seeds: what every output of a grid is made from."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from antibackdoor.benchmark.protocol import departures
from antibackdoor.benchmark.provenance import how_made
from antibackdoor.benchmark.reading import COUNTS, MEASURED, MeasuredCell, Setting, read

__all__ = ["FIGURES", "RULES", "Entry", "Stat", "Summary", "stat_of", "summarise"]

FIGURES = (*MEASURED, "control_ca", "control_asr", "control_ra", "seconds", "cost")
_NO_EFFECT = 0.5  # the rating of a defence that changes nothing
_SENTENCES = 3  # quoted at most for what a defence was given: the counts in them differ from row to row
RULES = (
    "Bold: the best defence of a row, by the highest mean defence effectiveness rating, DER = [max(0, ASR of none - "
    "ASR) - max(0, CA of none - CA) + 1] / 2, taken seed by seed, and those no further below it than a standard "
    "deviation over the seeds (the larger of the two). Of one seed there is none: bold is no evidence there. Only "
    "defences with every seed of the row compete, and none is best where no rating is above 0.5, which is no effect. "
    "In rows without an attack: the highest clean accuracy among the defences, by the same rule.",
    "Control: a network trained without a defence on the same images before they were poisoned, measured on the same "
    "triggered images. An attack success near the control's is as low as it gets.",
)


@dataclass(frozen=True)
class Stat:
    """A figure over the seeds.

    Attributes:
        mean: Their mean.
        sd: Sample standard deviation; None for one seed.
        n: Number of seeds behind it.
    """

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Entry:
    """One defence in one setting, over the seeds.

    Attributes:
        setting: What it was trained on.
        defence: Its label.
        undefended: Whether that is no defence at all.
        seeds: Those that are done.
        failed: Number of seeds that failed; they are in no figure.
        stats: Figures by name, as in :class:`MeasuredCell`; those that were measured.
        verdicts: How often each verdict was given.
        best: Whether it is the best of its setting; see ``RULES``.
    """

    setting: Setting
    defence: str
    undefended: bool
    seeds: tuple[int, ...]
    failed: int
    stats: Mapping[str, Stat]
    verdicts: Mapping[str, int]
    best: bool = False


@dataclass(frozen=True)
class Summary:
    """A whole grid.

    Attributes:
        settings: In the order of the rows.
        defences: In the order of the columns.
        entries: By setting and defence; what was never run is missing.
        controls: Figures "ca", "asr" and "ra" of the control by setting, where there are any.
        seeds: Number of seeds of each setting, over all its defences.
        given: What each defence was given beyond the training data; only those that were given something.
        notes: The sentences that say so.
        failures: Cells that failed, with their errors.
        made: How the cells were made, in sentences; see ``benchmark.provenance``.
        departures: What they lack of the protocol of comparison, in sentences; see ``benchmark.protocol``.
    """

    settings: tuple[Setting, ...]
    defences: tuple[str, ...]
    entries: Mapping[tuple[Setting, str], Entry]
    controls: Mapping[Setting, Mapping[str, Stat]]
    seeds: Mapping[Setting, int]
    given: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, tuple[str, ...]]
    failures: tuple[MeasuredCell, ...]
    made: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()

    def heading(self, defence: str) -> str:
        """Return the label of a defence with what it was given: "nad [5 % trusted]"."""
        marks = self.given.get(defence)
        return f"{defence} [{', '.join(marks)}]" if marks else defence


def summarise(records: Sequence[Mapping[str, object]]) -> Summary:
    """Put the cells of every setting and defence together, over the seeds.

    Raises:
        StorageError: A record of another format.
    """
    cells = read(records)
    settings = _ordered(cells)
    defences = sorted(
        dict.fromkeys(c.defence for c in cells), key=lambda d: all(not c.undefended for c in cells if c.defence == d)
    )
    by_entry: dict[tuple[Setting, str], list[MeasuredCell]] = {(s, d): [] for s in settings for d in defences}
    for cell in cells:
        by_entry[cell.setting, cell.defence].append(cell)
    seeds = {s: len({cell.seed for d in defences for cell in by_entry[s, d]}) for s in settings}
    entries = {key: _entry(group) for key, group in by_entry.items() if group}
    for setting in settings:
        row = [entries[setting, d] for d in defences if (setting, d) in entries]
        for entry in _best([entry for entry in row if not entry.undefended], seeds[setting]):
            entries[setting, entry.defence] = dataclasses.replace(entry, best=True)
    given = {d: tuple(dict.fromkeys(m for c in cells if c.defence == d for m in c.given)) for d in defences}
    notes = {d: tuple(dict.fromkeys(n for c in cells if c.defence == d for n in c.notes)) for d in defences}
    return Summary(
        settings=settings,
        defences=tuple(defences),
        entries=entries,
        controls=_controls(cells),
        seeds=seeds,
        given={d: marks for d, marks in given.items() if marks},
        notes={d: sentences[:_SENTENCES] for d, sentences in notes.items() if sentences},
        failures=tuple(cell for cell in cells if cell.error is not None),
        made=tuple(how_made(cells)),
        departures=tuple(departures(cells)),
    )


def stat_of(values: Sequence[float]) -> Stat | None:
    """Return mean, sample standard deviation and number of some values; None if there are none."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Stat(mean, None, 1)
    return Stat(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def _ordered(cells: Sequence[MeasuredCell]) -> tuple[Setting, ...]:
    """Return the settings: data, models and attacks as they come, no attack first, rates upwards."""
    data, models, attacks = (
        list(dict.fromkeys(getattr(cell.setting, name) for cell in cells)) for name in ("data", "model", "attack")
    )
    return tuple(
        sorted(
            {cell.setting for cell in cells},
            key=lambda s: (
                data.index(s.data),
                models.index(s.model),
                -1 if s.rate is None else attacks.index(s.attack),
                s.of_class,
                s.rate or 0.0,
            ),
        )
    )


def _entry(group: Sequence[MeasuredCell]) -> Entry:
    done = sorted((cell for cell in group if cell.error is None), key=lambda cell: cell.seed)
    stats = {name: stat_of([c.figures[name] for c in done if name in c.figures]) for name in (*FIGURES, *COUNTS)}
    return Entry(
        setting=group[0].setting,
        defence=group[0].defence,
        undefended=group[0].undefended,
        seeds=tuple(cell.seed for cell in done),
        failed=len(group) - len(done),
        stats={name: stat for name, stat in stats.items() if stat is not None},
        verdicts=Counter(cell.verdict for cell in done if cell.verdict),
    )


def _best(defences: Sequence[Entry], seeds: int) -> list[Entry]:
    """Return the best of one row's defences by the rule in ``RULES``; those that do not differ are best together."""
    name, least = ("der", _NO_EFFECT) if defences and defences[0].setting.rate is not None else ("ca", 0.0)
    # A thousandth is a tenth of a point: what looks equal in the table is equal.
    rated = [(entry, entry.stats[name]) for entry in defences if name in entry.stats and entry.stats[name].n == seeds]
    top = max((stat for _, stat in rated), key=lambda stat: stat.mean, default=None)
    if top is None:
        return []

    def near(stat: Stat) -> bool:
        return round(top.mean, 3) - round(stat.mean, 3) <= max(top.sd or 0.0, stat.sd or 0.0)

    return [entry for entry, stat in rated if near(stat) and round(stat.mean, 3) > least]


def _controls(cells: Iterable[MeasuredCell]) -> dict[Setting, dict[str, Stat]]:
    by_seed: dict[Setting, dict[int, Mapping[str, float]]] = {}
    for cell in cells:
        if "control_ca" in cell.figures or "control_asr" in cell.figures:
            by_seed.setdefault(cell.setting, {})[cell.seed] = cell.figures
    controls: dict[Setting, dict[str, Stat]] = {}
    for setting, seeds in by_seed.items():
        for name in ("ca", "asr", "ra"):
            stat = stat_of([f[f"control_{name}"] for f in seeds.values() if f"control_{name}" in f])
            if stat is not None:
                controls.setdefault(setting, {})[name] = stat
    return controls
