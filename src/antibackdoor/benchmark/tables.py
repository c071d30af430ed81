"""The tables of a grid: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from antibackdoor.benchmark.latex import latex
from antibackdoor.benchmark.reading import COUNTS
from antibackdoor.benchmark.summary import FIGURES, Summary, summarise
from antibackdoor.benchmark.wording import (
    BASIS_WORDS,
    MAIN,
    SIDE,
    SIDE_TITLE,
    SIDE_WORDS,
    attacked,
    count_of,
    failure_of,
    has,
    is_best,
    pair_of,
    percent,
    published_of,
    sources_of,
    words_of,
)
from antibackdoor.serialising import write_text

__all__ = ["write_tables"]


def write_tables(records: Sequence[Mapping[str, object]], out: Path) -> list[Path]:
    """Write table.md, table.csv and table.tex.

    Args:
        records: The records of the cells, in any order; failed ones are counted and listed, and are in no mean.
        out: Folder to write to.

    Returns:
        The files.

    Raises:
        StorageError: A record of another format, or a folder that cannot be written.
    """
    summary = summarise(records)
    files = {"table.md": _markdown(summary), "table.csv": _csv(summary), "table.tex": latex(summary)}
    for name, text in files.items():
        write_text(out / name, text)
    return [out / name for name in files]


def _md(text: str) -> str:
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", " ".join(text.split()))


def _markdown(summary: Summary) -> str:
    sources = sources_of(summary)
    lines = [
        "# Results",
        "",
        "Clean accuracy / attack success, both in %, mean ± standard deviation over n seeds.",
        "",
        *_rows(summary, MAIN, sources),
    ]
    for words in words_of(summary):
        lines += ["", _md(words)]
    if sources:
        lines += ["", "Published numbers are their authors', with their data, settings and definitions:", ""]
        lines += [f"{number}. {_md(source)}" for number, source in enumerate(sources, 1)]
    if has(summary, SIDE):
        lines += ["", f"## {SIDE_TITLE}", "", _md(SIDE_WORDS), "", *_rows(attacked(summary), SIDE, ())]
    lines += ["", "## What the figures are over", "", _md(BASIS_WORDS), "", *_basis(summary)]
    if summary.failures:
        lines += ["", f"## Failed cells: {len(summary.failures)}", "", "They are in no mean.", ""]
        lines += [f"* {_md(failure_of(cell))}" for cell in summary.failures]
    return "\n".join(lines) + "\n"


def _rows(summary: Summary, names: tuple[str, str], sources: Sequence[str]) -> list[str]:
    """Return a table with a row a setting and a column a defence, each with two figures."""
    heads = ["data", "model", "attack", "rate", "n", "control", *map(summary.heading, summary.defences)]
    heads += ["published"] if sources else []
    lines = [f"| {' | '.join(map(_md, heads))} |", "|" + "---|" * len(heads)]
    for setting in summary.settings:
        control = summary.controls.get(setting, {})
        cells = [setting.data, setting.model, setting.attack, setting.share or "–", str(summary.seeds[setting])]
        cells = [*map(_md, cells)]
        cells.append(" / ".join(percent(control.get(name)) for name in names) if control else "–")
        for defence in summary.defences:
            first, second, n = pair_of(summary, setting, defence, names)
            text = f"{first} / {second}" if second else first
            text = f"**{text}**" if is_best(summary, setting, defence) else text
            cells.append(f"{text} ({n})" if n else text)
        if sources:
            shown = (
                f"{_md(number.defence)} {100 * number.ca:.1f} / {100 * number.asr:.1f} "
                f"({sources.index(number.source) + 1})"
                for number in published_of(summary, setting)
            )
            cells.append("; ".join(shown) or "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _basis(summary: Summary) -> list[str]:
    """Return a table of the images that figures are shares of, and of the updates of every training."""
    images = ("n_train", "n_poison", "n_test", "n_triggered")
    heads = ["data", "model", "attack", "rate", "training images", "poison", "test images", "triggered"]
    heads += [f"updates of {defence}" for defence in summary.defences]
    lines = [f"| {' | '.join(map(_md, heads))} |", "|" + "---|" * len(heads)]
    for setting in summary.settings:
        entries = [summary.entries.get((setting, defence)) for defence in summary.defences]
        stats = [entry.stats if entry else {} for entry in entries]
        cells = [*map(_md, (setting.data, setting.model, setting.attack, setting.share or "–"))]
        cells += [count_of(next((own[name] for own in stats if name in own), None)) for name in images]
        cells += [count_of(own.get("updates")) for own in stats]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _csv(summary: Summary) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = ["data", "model", "attack", "rate", "rate_of", "defence", "given", "n", "seeds", "failed", "best", "verdicts"]
    figures = [column for name in FIGURES for column in (name, f"{name}_sd")]
    writer.writerow([*own, *figures, *COUNTS, "published_ca", "published_asr", "published_source"])
    for (setting, defence), entry in summary.entries.items():
        numbers = [number for number in published_of(summary, setting) if number.defence == defence]
        stats = [entry.stats.get(name) for name in FIGURES]
        spread = [value for stat in stats for value in ((stat.mean, stat.sd) if stat else (None, None))]
        writer.writerow(
            [
                *(setting.data, setting.model, setting.attack),
                "" if setting.rate is None else f"{setting.rate:g}",
                "" if setting.rate is None else "class" if setting.of_class else "dataset",
                *(defence, "; ".join(summary.given.get(defence, ())), len(entry.seeds)),
                " ".join(map(str, entry.seeds)),
                *(entry.failed, int(entry.best)),
                "; ".join(f"{verdict}: {count}" for verdict, count in entry.verdicts.items()),
                *("" if value is None else f"{value:.6g}" for value in spread),
                *(f"{entry.stats[name].mean:.10g}" if name in entry.stats else "" for name in COUNTS),
                "; ".join(f"{number.ca:g}" for number in numbers),
                "; ".join(f"{number.asr:g}" for number in numbers),
                " | ".join(number.source for number in numbers),
            ]
        )
    return text.getvalue()
