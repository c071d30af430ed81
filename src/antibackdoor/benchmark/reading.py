"""The records of a grid's cells, read: what each was trained on, what was measured, what it was given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from antibackdoor.benchmark.folder import CELL_FORMAT
from antibackdoor.errors import StorageError
from antibackdoor.ops.metrics import defence_effectiveness

__all__ = ["COUNTS", "MEASURED", "MeasuredCell", "Setting", "mapping", "read"]

MEASURED = ("ca", "ca_target", "asr", "excess", "ra", "der", "precision", "recall", "fpr", "auroc", "auprc")
# What figures are shares of, and how long the training was.
COUNTS = ("n_train", "n_poison", "n_test", "n_triggered", "updates")


_LARGEST = 1e300  # Whole numbers far beyond cannot become a float.


@dataclass(frozen=True)
class Setting:
    """What the defences of one row were trained on.

    Attributes:
        data: Name of the data set.
        model: Name of the network.
        attack: Label of the attack.
        rate: Share of poisoned images, 0..1; None without an attack.
        of_class: That is a share of the images that the attack may poison, its class, not of the set.
        method: Name of the attack itself, whatever its label; two settings are one whatever it is.
    """

    data: str
    model: str
    attack: str
    rate: float | None
    of_class: bool = False
    method: str = field(default="", compare=False)

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
class MeasuredCell:
    """One record, read.

    Attributes:
        setting: What was trained on.
        defence: Label of the defence.
        undefended: Whether that is no defence at all.
        seed: The run's seed.
        error: Why it failed; None if it did not.
        figures: What was measured, each a finite number: metrics by name, "control_ca" and the like, "excess" (attack
            success above the control's), "seconds" and "updates" of training, images by "n_test" and the like; with its
            undefended partner also "der" and "cost".
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


def read(records: Sequence[Mapping[str, object]]) -> list[MeasuredCell]:
    """Return the cells of a grid, each one once.

    Two records of one setting, label and seed differ in hyper-parameters: those then stand in the labels. Where they do
    not differ, the later record counts.

    Raises:
        StorageError: A record of another format.
    """
    cells = {cell.identity: cell for cell in _told_apart([_parse(record) for record in records])}
    partners = {(cell.setting, cell.seed): cell for cell in cells.values() if cell.undefended and cell.error is None}
    return [_compared(cell, partners.get((cell.setting, cell.seed))) for cell in cells.values()]


def mapping(value: object) -> Mapping[str, object]:
    """Return a JSON value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        return None
    return float(value)


def _parse(record: Mapping[str, object]) -> MeasuredCell:
    cell = mapping(record.get("cell"))
    if record.get("format") != CELL_FORMAT or not {"data", "attack", "defence", "model", "seed"} <= cell.keys():
        found = record.get("format")
        raise StorageError(f"expected a record of format {CELL_FORMAT!r}, got {found!r}; run the grid again")
    figures = {name: _number(mapping(record.get("metrics")).get(name)) for name in (*MEASURED, *COUNTS)}
    figures["updates"] = _number(record.get("updates"))
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
    return MeasuredCell(
        setting=Setting(
            data=str(cell["data"]),
            model=str(cell["model"]),
            attack=str(cell.get("attack_label") or cell["attack"]),
            rate=None if cell["attack"] == "none" else _number(cell.get("rate")),
            of_class=cell["attack"] != "none" and attack.get("rate_of") == "class",
            method=str(cell["attack"]),
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


def _told_apart(cells: Sequence[MeasuredCell]) -> list[MeasuredCell]:
    """Put the hyper-parameters into the labels under which different ones were run."""
    groups: dict[tuple[Setting, str, int], list[MeasuredCell]] = {}
    for cell in cells:
        groups.setdefault(cell.identity, []).append(cell)
    differing: dict[tuple[str, str], dict[str, None]] = {}
    for group in groups.values():
        for family, label in (("attack", group[0].setting.attack), ("defence", group[0].defence)):
            sections = [cell.section(family) for cell in group]
            for key in dict.fromkeys(key for section in sections for key in section):
                if len({repr(section.get(key)) for section in sections}) > 1:
                    differing.setdefault((family, label), {})[key] = None

    def named(cell: MeasuredCell, family: str, label: str) -> str:
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


def _compared(cell: MeasuredCell, undefended: MeasuredCell | None) -> MeasuredCell:
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
