"""What the tables of a grid have in common: figures in words, what stands beside them, what they are shares of."""

from __future__ import annotations

import dataclasses
import re

from antibackdoor.benchmark.published import PUBLISHED, Published
from antibackdoor.benchmark.reading import MeasuredCell, Setting
from antibackdoor.benchmark.summary import RULES, Stat, Summary

__all__ = [
    "BASIS_WORDS",
    "MAIN",
    "SIDE",
    "SIDE_TITLE",
    "SIDE_WORDS",
    "attacked",
    "count_of",
    "failure_of",
    "has",
    "is_best",
    "pair_of",
    "percent",
    "published_of",
    "sources_of",
    "words_of",
]

MAIN, SIDE = ("ca", "asr"), ("ra", "der")
SIDE_TITLE = "Robust accuracy / defence effectiveness"
SIDE_WORDS = (
    "Both in %. Robust accuracy, RA: triggered test images, of other classes than their target, that are predicted as "
    "their own class. Defence effectiveness, DER: 100 is best, 50 no effect; undefended training has none."
)
BASIS_WORDS = (
    "Clean accuracy is a share of the test images of all classes; attack success and RA are shares of the triggered "
    "images. Updates are steps of the optimiser in all phases of a training, means over the seeds; records from before "
    "they were counted have none."
)


def percent(stat: Stat | None) -> str:
    """Return "86.1 ± 0.4", in percent, without the spread for one seed; "–" where nothing was measured."""
    if stat is None:
        return "–"
    return f"{100 * stat.mean:.1f}" + ("" if stat.sd is None else f" ± {100 * stat.sd:.1f}")


def count_of(stat: Stat | None) -> str:
    """Return "10,000", rounded where seeds differ; "–" where nothing was counted."""
    return "–" if stat is None else f"{stat.mean:,.0f}"


def published_of(summary: Summary, setting: Setting) -> list[Published]:
    """Return the published numbers of a setting, for the defences that were run."""
    data = re.sub(r"[^a-z0-9]", "", setting.data.lower())
    return [
        number
        for number in PUBLISHED
        if not setting.of_class  # all are shares of the set
        and (number.data, number.model, number.attack, number.rate)
        == (data, setting.model, setting.method, setting.rate)
        and number.defence in summary.defences
    ]


def sources_of(summary: Summary) -> list[str]:
    """Return the sources of all published numbers that are shown."""
    return list(dict.fromkeys(number.source for s in summary.settings for number in published_of(summary, s)))


def pair_of(summary: Summary, setting: Setting, defence: str, names: tuple[str, str]) -> tuple[str, str, str]:
    """Return two figures in percent, and n where it is not the row's.

    Args:
        summary: The grid.
        setting: The row.
        defence: The column.
        names: Of the figures, such as ``MAIN``.
    """
    entry = summary.entries.get((setting, defence))
    if entry is None or not entry.seeds:
        return ("–" if entry is None else "failed"), "", ""
    n = len(entry.seeds)
    note = "" if n == summary.seeds[setting] else f"n={n}"
    first, second = (percent(entry.stats.get(name)) for name in names)
    return first, second, note


def has(summary: Summary, names: tuple[str, str]) -> bool:
    """Say whether either of two figures was measured anywhere."""
    return any(name in entry.stats for entry in summary.entries.values() for name in names)


def attacked(summary: Summary) -> Summary:
    """Return the same grid without its rows of no attack, for figures of the attack."""
    return dataclasses.replace(summary, settings=tuple(s for s in summary.settings if s.rate is not None))


def is_best(summary: Summary, setting: Setting, defence: str) -> bool:
    """Say whether a defence is the best of its row."""
    entry = summary.entries.get((setting, defence))
    return entry is not None and entry.best


def words_of(summary: Summary) -> list[str]:
    """Return what stands under the tables, but the failures."""
    words = [*summary.made, *summary.departures, *RULES]
    if summary.given:
        words.append("What a defence was given beyond the training data stands in brackets behind its name.")
    words += [f"{defence}: {' '.join(sentences)}" for defence, sentences in summary.notes.items()]
    return words


def failure_of(cell: MeasuredCell) -> str:
    """Return which cell failed and why, in one line."""
    place = (cell.setting.data, cell.setting.model, cell.setting.title, cell.defence, f"seed {cell.seed}")
    return f"{', '.join(place)}: {cell.error}"
