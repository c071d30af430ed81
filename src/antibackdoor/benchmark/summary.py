"""The records of a grid's cells put together, over the seeds: what every output of a grid is made from."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from antibackdoor.errors import StorageError
from antibackdoor.ops.metrics import defence_effectiveness

__all__ = [
    "FIGURES",
    "FORMAT",
    "RULES",
    "Entry",
    "Run",
    "Setting",
    "Stat",
    "Summary",
    "mapping",
    "read",
    "stat_of",
    "summarise",
]

FORMAT = "antibackdoor cell 1"
_MEASURED = ("ca", "ca_target", "asr", "excess", "ra", "der", "precision", "recall", "fpr", "auroc", "auprc")
FIGURES = (*_MEASURED, "control_ca", "control_asr", "control_ra", "seconds", "cost")
_NO_EFFECT = 0.5  # the rating of a defence that changes nothing
_SENTENCES = 3  # quoted at most for what a defence was given: the counts in them differ from row to row
RULES = (
    "Bold: the best defence of a row, by the highest mean defence effectiveness rating, DER = [max(0, ASR of none - "
    "ASR) - max(0, CA of none - CA) + 1] / 2, taken seed by seed. Only defences with every seed of the row compete, "
    "and none is best where no rating is above 0.5, which is no effect. In rows without an attack: the highest clean "
    "accuracy among the defences.",
    "Control: a network trained without a defence on the same images before they were poisoned, measured on the same "
    "triggered images. An attack success near the control's is as low as it gets.",
)


@dataclass(frozen=True)
class Setting:
    """What the defences of one row were trained on.

    Attributes:
        data: Name of the data set.
        model: Name of the network.
        attack: Label of the attack.
        rate: Share of poisoned images, 0..1; None without an attack.
        of_class: That is a share of the images that the attack may poison, its class, not of the set.
    """

    data: str
    model: str
    attack: str
    rate: float | None
    of_class: bool = False

    @property
    def share(self) -> str | None:
        """The rate in words, such as "10 %" or "80 % of class"; None without an attack."""
        if self.rate is None:
            return None
        return f"{100 * self.rate:.4g} %" + (" of class" if self.of_class else "")

    @property
    def title(self) -> str:
        """The attack and its rate, such as "badnets 10 %"."""
        return "no attack" if self.rate is None else f"{self.attack} {self.share}"


@dataclass(frozen=True)
class Run:
    """One record, read.

    Attributes:
        setting: What was trained on.
        defence: Label of the defence.
        undefended: Whether that is no defence at all.
        seed: The run's seed.
        error: Why it failed; None if it did not.
        figures: What was measured, each a finite number: metrics by name, "control_ca" and the like, "excess" (attack
            success above the control's), "seconds" of training; with its undefended partner also "der" and "cost".
        given: What the defence was given beyond the training data, in a word or two each.
        notes: The sentences of its evidence that say so.
        verdict: What it said about the set.
        record: The whole record.
    """

    setting: Setting
    defence: str
    undefended: bool
    seed: int
    error: str | None
    figures: Mapping[str, float]
    given: tuple[str, ...]
    notes: tuple[str, ...]
    verdict: str | None
    record: Mapping[str, object]

    @property
    def identity(self) -> tuple[Setting, str, int]:
        """What only one record may have."""
        return self.setting, self.defence, self.seed

    def section(self, name: str) -> Mapping[str, object]:
        """Return a section of the run's configuration; empty if it has none of that name."""
        return mapping(mapping(self.record.get("config")).get(name))


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
        stats: Figures by name, as in :class:`Run`; those that were measured.
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
    """

    settings: tuple[Setting, ...]
    defences: tuple[str, ...]
    entries: Mapping[tuple[Setting, str], Entry]
    controls: Mapping[Setting, Mapping[str, Stat]]
    seeds: Mapping[Setting, int]
    given: Mapping[str, tuple[str, ...]]
    notes: Mapping[str, tuple[str, ...]]
    failures: tuple[Run, ...]

    def heading(self, defence: str) -> str:
        """Return the label of a defence with what it was given: "nad [5 % trusted]"."""
        marks = self.given.get(defence)
        return f"{defence} [{', '.join(marks)}]" if marks else defence


def read(records: Sequence[Mapping[str, object]]) -> list[Run]:
    """Return the cells of a grid, each one once.

    Two records of one setting, label and seed differ in hyper-parameters: those then stand in the labels. Where they do
    not differ, the later record counts.

    Raises:
        StorageError: A record of another format.
    """
    cells = {cell.identity: cell for cell in _told_apart([_parse(record) for record in records])}
    partners = {(cell.setting, cell.seed): cell for cell in cells.values() if cell.undefended and cell.error is None}
    return [_compared(cell, partners.get((cell.setting, cell.seed))) for cell in cells.values()]


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
    by_entry: dict[tuple[Setting, str], list[Run]] = {(s, d): [] for s in settings for d in defences}
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
    )


def mapping(value: object) -> Mapping[str, object]:
    """Return a JSON value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def stat_of(values: Sequence[float]) -> Stat | None:
    """Return mean, sample standard deviation and number of some values; None if there are none."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Stat(mean, None, 1)
    return Stat(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _parse(record: Mapping[str, object]) -> Run:
    cell = mapping(record.get("cell"))
    if record.get("format") != FORMAT or not {"data", "attack", "defence", "model", "seed"} <= cell.keys():
        raise StorageError(f"expected a record of format {FORMAT!r}, got {record.get('format')!r}; run the grid again")
    figures = {name: _number(mapping(record.get("metrics")).get(name)) for name in _MEASURED}
    control = mapping(record.get("control"))
    figures |= {f"control_{name}": _number(control.get(name)) for name in ("ca", "asr", "ra")}
    figures["seconds"] = _number(record.get("train_seconds"))
    if figures["asr"] is not None and figures["control_asr"] is not None:
        figures["excess"] = figures["asr"] - figures["control_asr"]
    evidence = record.get("evidence")
    sentences = [str(sentence) for sentence in evidence] if isinstance(evidence, list | tuple) else []
    notes = tuple(sentence for sentence in sentences if re.search(r"\b(was|were) (given|told)\b", sentence))
    error = mapping(record.get("error"))
    done = record.get("status") == "done"
    attack = mapping(mapping(record.get("config")).get("attack"))
    return Run(
        setting=Setting(
            data=str(cell["data"]),
            model=str(cell["model"]),
            attack=str(cell.get("attack_label") or cell["attack"]),
            rate=None if cell["attack"] == "none" else _number(cell.get("rate")),
            of_class=cell["attack"] != "none" and attack.get("rate_of") == "class",
        ),
        defence=str(cell.get("defence_label") or cell["defence"]),
        undefended=cell["defence"] == "none",
        seed=int(_number(cell["seed"]) or 0),
        error=None if done else f"{error.get('type') or 'error'}: {error.get('message') or 'no message'}",
        figures={name: value for name, value in figures.items() if value is not None} if done else {},
        given=_given(mapping(mapping(record.get("config")).get("defence")), notes),
        notes=notes,
        verdict=str(record["verdict"]) if done and record.get("verdict") else None,
        record=record,
    )


def _given(settings: Mapping[str, object], notes: Iterable[str]) -> tuple[str, ...]:
    """Say what a defence was given beyond the data: by its settings, unless its own words say otherwise."""
    share, rate, words = _number(settings.get("trusted_share")), _number(settings.get("rate")), " ".join(notes)
    marks = []
    if share and (not words or f"{100 * share:g} %" in words):
        marks.append(f"{100 * share:g} % trusted")
    elif "trusted" in words:  # from elsewhere
        marks.append("trusted images")
    if "true rate" in words:
        marks.append("true rate")
    elif rate is not None:  # somebody's guess, which need not be true
        marks.append("a rate")
    return tuple(marks) or (("more than the data",) if words else ())


def _told_apart(cells: Sequence[Run]) -> list[Run]:
    """Put the hyper-parameters into the labels under which different ones were run."""
    groups: dict[tuple[Setting, str, int], list[Run]] = {}
    for cell in cells:
        groups.setdefault(cell.identity, []).append(cell)
    differing: dict[tuple[str, str], dict[str, None]] = {}
    for group in groups.values():
        for family, label in (("attack", group[0].setting.attack), ("defence", group[0].defence)):
            sections = [cell.section(family) for cell in group]
            for key in dict.fromkeys(key for section in sections for key in section):
                if len({repr(section.get(key)) for section in sections}) > 1:
                    differing.setdefault((family, label), {})[key] = None

    def named(cell: Run, family: str, label: str) -> str:
        keys, section = differing.get((family, label), {}), cell.section(family)
        return f"{label} ({', '.join(f'{key}={section.get(key)}' for key in keys)})" if keys else label

    return [
        dataclasses.replace(
            cell,
            setting=dataclasses.replace(cell.setting, attack=named(cell, "attack", cell.setting.attack)),
            defence=named(cell, "defence", cell.defence),
        )
        for cell in cells
    ]


def _compared(cell: Run, undefended: Run | None) -> Run:
    """Add the figures that need the undefended run of the same setting and seed."""
    if undefended is None or cell.error is not None:
        return cell
    before, after = undefended.figures, cell.figures
    figures = dict(after)
    if not cell.undefended and all("ca" in part and "asr" in part for part in (before, after)):
        figures["der"] = defence_effectiveness(
            ca_before=before["ca"], asr_before=before["asr"], ca_after=after["ca"], asr_after=after["asr"]
        )
    if "seconds" in after and before.get("seconds", 0) > 0:
        figures["cost"] = after["seconds"] / before["seconds"]
    return dataclasses.replace(cell, figures=figures)


def _ordered(cells: Sequence[Run]) -> tuple[Setting, ...]:
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


def _entry(group: Sequence[Run]) -> Entry:
    done = sorted((cell for cell in group if cell.error is None), key=lambda cell: cell.seed)
    stats = {name: stat_of([c.figures[name] for c in done if name in c.figures]) for name in FIGURES}
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
    """Return the best of one row's defences by the rule in ``RULES``; equals are best together."""
    name, least = ("der", _NO_EFFECT) if defences and defences[0].setting.rate is not None else ("ca", 0.0)
    # A thousandth is a tenth of a point: what looks equal in the table is equal.
    ratings = [(e, round(e.stats[name].mean, 3)) for e in defences if name in e.stats and e.stats[name].n == seeds]
    top = max((rating for _, rating in ratings), default=least)
    return [entry for entry, rating in ratings if rating == top and rating > least]


def _controls(cells: Iterable[Run]) -> dict[Setting, dict[str, Stat]]:
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
