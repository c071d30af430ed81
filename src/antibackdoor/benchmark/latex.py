"""The tables of a grid in LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from antibackdoor.benchmark.reading import Setting
from antibackdoor.benchmark.summary import Summary
from antibackdoor.benchmark.wording import (
    MAIN,
    SIDE,
    failure_of,
    has,
    is_best,
    pair_of,
    percent,
    published_of,
    sources_of,
    words_of,
)

__all__ = ["latex"]

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


def latex(summary: Summary) -> str:
    """Return the tables of a grid as a LaTeX document."""
    sources = sources_of(summary)
    lines = [
        r"\documentclass{article}",
        r"\usepackage[a4paper,landscape,margin=15mm]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
    ]
    for data, model in dict.fromkeys((s.data, s.model) for s in summary.settings):
        rows = [s for s in summary.settings if (s.data, s.model) == (data, model)]
        caption = f"{data}, {model}: clean accuracy (CA) and attack success (ASR) in %"
        lines += _table(summary, rows, sources, caption, MAIN)
        if has(summary, SIDE):
            caption = f"{data}, {model}: robust accuracy (RA) and defence effectiveness (DER) in %"
            lines += _table(summary, [s for s in rows if s.rate is not None], (), caption, SIDE)
    for words in words_of(summary):
        lines += [r"\noindent " + _tex(words), ""]
    if sources:
        lines += [r"\noindent Published numbers are their authors', with their data, settings and definitions:"]
        lines += [f"({number}) {_tex(source)}." for number, source in enumerate(sources, 1)]
    if summary.failures:
        lines += ["", rf"\noindent Failed cells, in no mean: {len(summary.failures)}."]
        lines += ["", *(rf"\noindent {_tex(failure_of(cell))}" + "\n" for cell in summary.failures)]
    return "\n".join([*lines, r"\end{document}", ""])


def _table(
    summary: Summary, rows: Sequence[Setting], sources: Sequence[str], caption: str, names: tuple[str, str]
) -> list[str]:
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
        "attack & rate & n "
        + "".join(f"& {name.upper()} " for name in names) * width
        + (r"& published \\" if last else r"\\"),
        r"\midrule",
    ]
    for setting in rows:
        control = summary.controls.get(setting, {})
        cells = [*map(_tex, (setting.attack, setting.share or "–")), str(summary.seeds[setting])]
        cells += [_tex(percent(control.get(name))) for name in names]
        for defence in summary.defences:
            first, second, n = pair_of(summary, setting, defence, names)
            shown = [_tex(first), _tex(second or "–")]
            if is_best(summary, setting, defence):
                shown = [rf"\textbf{{{value}}}" for value in shown]
            cells += [shown[0], f"{shown[1]} ({n})" if n else shown[1]]
        if last:
            numbers = (
                f"{number.defence} {100 * number.ca:.1f} / {100 * number.asr:.1f} ({sources.index(number.source) + 1})"
                for number in published_of(summary, setting)
            )
            cells.append(_tex("; ".join(numbers) or "–"))
        lines.append(" & ".join(cells) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
