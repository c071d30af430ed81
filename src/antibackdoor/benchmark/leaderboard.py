"""The leaderboard of a grid: one offline page to sort and filter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import jinja2

from antibackdoor.benchmark.provenance import device_words
from antibackdoor.benchmark.reading import mapping
from antibackdoor.benchmark.summary import RULES, Entry, Stat, Summary, summarise
from antibackdoor.report.pages import storable, template
from antibackdoor.serialising import write_text
from antibackdoor.types import Json

__all__ = ["render_leaderboard", "write_leaderboard"]

# name of the figure, head of its column, what it means, its unit, which end is better
_COLUMNS = (
    ("ca", "Clean accuracy", "of the whole clean test set", "%", "high"),
    ("asr", "Attack success", "triggered images of other classes predicted as the attacker wants", "%", "low"),
    ("excess", "Above control", "attack success minus that of a network trained before poisoning", "%", "low"),
    ("ra", "Robust accuracy", "the same triggered images predicted as their own class", "%", "high"),
    ("der", "DER", "defence effectiveness rating: 1 is best, 0.5 is no effect", "", "high"),
    ("precision", "Precision", "share of the flagged images that are poison", "%", "high"),
    ("recall", "Recall", "share of the poison that is flagged", "%", "high"),
    ("cost", "Cost", "seconds of training, as a multiple of undefended training", "×", "low"),
)
_FILTERS = (
    ("data", "Data set"),
    ("attack", "Attack"),
    ("rate", "Rate"),
    ("defence", "Defence"),
    ("model", "Model"),
)


def write_leaderboard(records: Sequence[Mapping[str, object]], out: Path) -> list[Path]:
    """Write leaderboard.html: one file that asks nothing of the network.

    Args:
        records: The records of the cells; failed ones are listed, and are in no mean.
        out: Folder to write to.

    Returns:
        The file.

    Raises:
        StorageError: A record of another format, or a folder that cannot be written.
    """
    page = out / "leaderboard.html"
    write_text(page, render_leaderboard(records))
    return [page]


def render_leaderboard(records: Sequence[Mapping[str, object]]) -> str:
    """Return the page; the same records give the same text, and every name from outside is escaped.

    Args:
        records: As for :func:`write_leaderboard`.

    Raises:
        StorageError: A record of another format.
    """
    summary = summarise(records)
    rows = [_row(summary, entry) for entry in summary.entries.values()]
    done = [record for record in records if record.get("status") == "done"]
    page = _template().render(
        rows=rows,
        columns=[{"key": key, "head": head, "unit": unit, "better": better} for key, head, _, unit, better in _COLUMNS],
        meanings=[(head, meaning) for _, head, meaning, _, _ in _COLUMNS],
        filters=[{"key": key, "head": head, "options": _options(rows, key)} for key, head in _FILTERS],
        cells=len(done),
        seeds=sorted({seed for entry in summary.entries.values() for seed in entry.seeds}),
        given=[(name, marks, " ".join(summary.notes.get(name, ()))) for name, marks in summary.given.items()],
        failures=[
            (f"{c.setting.data}, {c.setting.model}, {c.setting.title}, {c.defence}, seed {c.seed}", c.error)
            for c in summary.failures
        ],
        rules=(*summary.made, *summary.departures, *RULES),
        devices=Counter(_device(record.get("device")) for record in done).most_common(),
        versions=_versions(done),
    )
    return storable(page)


@cache
def _template() -> jinja2.Template:
    return template("antibackdoor.benchmark", "leaderboard.html.j2")


def _row(summary: Summary, entry: Entry) -> dict[str, Json]:
    setting = entry.setting
    given: list[Json] = [*summary.given.get(entry.defence, ())]
    seeds: list[Json] = [*entry.seeds]
    return {
        "data": setting.data,
        "model": setting.model,
        "attack": setting.attack,
        "rate": setting.share or "none",
        "rate_value": setting.rate or 0.0,
        "defence": entry.defence,
        "given": given,
        "best": entry.best,
        "seeds": seeds,
        "failed": entry.failed,
        "of": summary.seeds[setting],
        "undefended": entry.undefended,
        "stats": {key: _stat(entry.stats.get(key)) for key, *_ in _COLUMNS},
    }


def _stat(stat: Stat | None) -> Json:
    return None if stat is None else [stat.mean, stat.sd, stat.n]


def _options(rows: Sequence[Mapping[str, Json]], key: str) -> list[str]:
    """Return the values of a column in their order, rates upwards."""
    if key == "rate":
        rows = sorted(rows, key=lambda row: row["rate_value"] or 0.0)  # type: ignore[arg-type,return-value]
    return list(dict.fromkeys(str(row[key]) for row in rows))


def _device(value: object) -> str:
    """Return where a cell ran, in words."""
    device = mapping(value)
    if not device:
        return str(value) if value else "not recorded"
    words = [*device_words(device), *([f"{device['threads']} threads"] if device.get("threads") else [])]
    return ", ".join(words) or "not recorded"


def _versions(records: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    """Return every library with the versions that were used."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, version in mapping(record.get("versions")).items():
            found.setdefault(str(name), {})[str(version)] = None
    return [(name, ", ".join(versions)) for name, versions in found.items()]
