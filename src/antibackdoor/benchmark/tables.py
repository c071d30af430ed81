"""The tables of a grid: Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from antibackdoor.benchmark.published import PUBLISHED, Published
from antibackdoor.benchmark.reading import Run, Setting
from antibackdoor.benchmark.summary import FIGURES, RULES, Stat, Summary, summarise
from antibackdoor.storage import write_text

__all__ = ["percent", "write_tables"]


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
    files = {"table.md": _markdown(summary), "table.csv": _csv(summary), "table.tex": _latex(summary)}
    for name, text in files.items():
        write_text(out / name, text)
    return [out / name for name in files]


def percent(stat: Stat | None) -> str:
    """Return "86.1 ± 0.4", in percent, without the spread for one seed; "–" where nothing was measured."""
    if stat is None:
        return "–"
    return f"{100 * stat.mean:.1f}" + ("" if stat.sd is None else f" ± {100 * stat.sd:.1f}")


def _published(summary: Summary, setting: Setting) -> list[Published]:
    data = re.sub(r"[^a-z0-9]", "", setting.data.lower())
    return [
        number
        for number in PUBLISHED
        if not setting.of_class  # all are shares of the set
        and (number.data, number.model, number.attack, number.rate)
        == (data, setting.model, setting.method, setting.rate)
        and number.defence in summary.defences
    ]


def _sources(summary: Summary) -> list[str]:
    return list(dict.fromkeys(number.source for s in summary.settings for number in _published(summary, s)))


def _pair(summary: Summary, setting: Setting, defence: str) -> tuple[str, str, str]:
    """Return clean accuracy, attack success, and n where it is not the row's."""
    entry = summary.entries.get((setting, defence))
    if entry is None or not entry.seeds:
        return ("–" if entry is None else "failed"), "", ""
    n = len(entry.seeds)
    note = "" if n == summary.seeds[setting] else f"n={n}"
    return percent(entry.stats.get("ca")), percent(entry.stats.get("asr")), note


def _is_best(summary: Summary, setting: Setting, defence: str) -> bool:
    entry = summary.entries.get((setting, defence))
    return entry is not None and entry.best


def _words(summary: Summary) -> list[str]:
    """Return what stands under the tables, but the failures."""
    words = [*summary.made, *RULES]
    if summary.given:
        words.append("What a defence was given beyond the training data stands in brackets behind its name.")
    words += [f"{defence}: {' '.join(sentences)}" for defence, sentences in summary.notes.items()]
    return words


def _failure(cell: Run) -> str:
    place = (cell.setting.data, cell.setting.model, cell.setting.title, cell.defence, f"seed {cell.seed}")
    return f"{', '.join(place)}: {cell.error}"


def _md(text: str) -> str:
    return re.sub(r"([\\|*_`<\[\]])", r"\\\1", " ".join(text.split()))


def _markdown(summary: Summary) -> str:
    sources = _sources(summary)
    heads = ["data", "model", "attack", "rate", "n", "control", *map(summary.heading, summary.defences)]
    heads += ["published"] if sources else []
    lines = [
        "# Results",
        "",
        "Clean accuracy / attack success, both in %, mean ± standard deviation over n seeds.",
        "",
        f"| {' | '.join(map(_md, heads))} |",
        "|" + "---|" * len(heads),
    ]
    for setting in summary.settings:
        control = summary.controls.get(setting, {})
        cells = [setting.data, setting.model, setting.attack, setting.share or "–", str(summary.seeds[setting])]
        cells = [*map(_md, cells)]
        cells.append(f"{percent(control.get('ca'))} / {percent(control.get('asr'))}" if control else "–")
        for defence in summary.defences:
            ca, asr, n = _pair(summary, setting, defence)
            text = f"{ca} / {asr}" if asr else ca
            text = f"**{text}**" if _is_best(summary, setting, defence) else text
            cells.append(f"{text} ({n})" if n else text)
        if sources:
            shown = (
                f"{_md(number.defence)} {100 * number.ca:.1f} / {100 * number.asr:.1f} "
                f"({sources.index(number.source) + 1})"
                for number in _published(summary, setting)
            )
            cells.append("; ".join(shown) or "–")
        lines.append(f"| {' | '.join(cells)} |")
    for words in _words(summary):
        lines += ["", _md(words)]
    if sources:
        lines += ["", "Published numbers are their authors', with their data, settings and definitions:", ""]
        lines += [f"{number}. {_md(source)}" for number, source in enumerate(sources, 1)]
    if summary.failures:
        lines += ["", f"## Failed cells: {len(summary.failures)}", "", "They are in no mean.", ""]
        lines += [f"* {_md(_failure(cell))}" for cell in summary.failures]
    return "\n".join(lines) + "\n"


def _csv(summary: Summary) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    own = ["data", "model", "attack", "rate", "rate_of", "defence", "given", "n", "seeds", "failed", "best", "verdicts"]
    figures = [column for name in FIGURES for column in (name, f"{name}_sd")]
    writer.writerow([*own, *figures, "published_ca", "published_asr", "published_source"])
    for (setting, defence), entry in summary.entries.items():
        numbers = [number for number in _published(summary, setting) if number.defence == defence]
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
                "; ".join(f"{number.ca:g}" for number in numbers),
                "; ".join(f"{number.asr:g}" for number in numbers),
                " | ".join(number.source for number in numbers),
            ]
        )
    return text.getvalue()


_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in " ".join(text.split()))


def _latex(summary: Summary) -> str:
    sources = _sources(summary)
    lines = [
        r"\documentclass{article}",
        r"\usepackage[a4paper,landscape,margin=15mm]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for data, model in dict.fromkeys((s.data, s.model) for s in summary.settings):
        rows = [s for s in summary.settings if (s.data, s.model) == (data, model)]
        lines += _latex_table(
            summary, rows, sources, f"{data}, {model}: clean accuracy (CA) and attack success (ASR) in %"
        )
    for words in _words(summary):
        lines += [r"\noindent " + _tex(words), ""]
    if sources:
        lines += [r"\noindent Published numbers are their authors', with their data, settings and definitions:"]
        lines += [f"({number}) {_tex(source)}." for number, source in enumerate(sources, 1)]
    if summary.failures:
        lines += ["", rf"\noindent Failed cells, in no mean: {len(summary.failures)}."]
        lines += ["", *(rf"\noindent {_tex(_failure(cell))}" + "\n" for cell in summary.failures)]
    return "\n".join([*lines, r"\end{document}", ""])


def _latex_table(summary: Summary, rows: Sequence[Setting], sources: Sequence[str], caption: str) -> list[str]:
    columns = ["control", *map(summary.heading, summary.defences)]
    last = "l" if sources else ""
    width = len(columns)
    rules = "".join(rf"\cmidrule(lr){{{4 + 2 * i}-{5 + 2 * i}}}" for i in range(width))
    lines = [
        r"\begin{table}[p]\centering",
        rf"\caption{{{_tex(caption)}, mean $\pm$ standard deviation over n seeds.}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{llr{'rr' * width}{last}}}",
        r"\toprule",
        " & & "
        + "".join(rf"& \multicolumn{{2}}{{c}}{{{_tex(name)}}} " for name in columns)
        + (r"& \\" if last else r"\\"),
        rules,
        "attack & rate & n " + "& CA & ASR " * width + (r"& published \\" if last else r"\\"),
        r"\midrule",
    ]
    for setting in rows:
        control = summary.controls.get(setting, {})
        cells = [*map(_tex, (setting.attack, setting.share or "–")), str(summary.seeds[setting])]
        cells += [_tex(percent(control.get("ca"))), _tex(percent(control.get("asr")))]
        for defence in summary.defences:
            ca, asr, n = _pair(summary, setting, defence)
            shown = [_tex(ca), _tex(asr or "–")]
            if _is_best(summary, setting, defence):
                shown = [rf"\textbf{{{value}}}" for value in shown]
            cells += [shown[0], f"{shown[1]} ({n})" if n else shown[1]]
        if last:
            numbers = (
                f"{number.defence} {100 * number.ca:.1f} / {100 * number.asr:.1f} ({sources.index(number.source) + 1})"
                for number in _published(summary, setting)
            )
            cells.append(_tex("; ".join(numbers) or "–"))
        lines.append(" & ".join(cells) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
