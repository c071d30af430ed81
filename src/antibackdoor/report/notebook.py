"""One run in a notebook: verdict, evidence, classes and the most suspect images, as a piece of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import jinja2
import numpy as np

from antibackdoor.report import tables
from antibackdoor.report.pages import storable, template
from antibackdoor.report.render import data_uri

if TYPE_CHECKING:
    from antibackdoor.types import ImageSet, Isolation, Metrics, Verdict

__all__ = ["run_html"]

_CLASSES, _IMAGES, _SENTENCES = 12, 24, 6
_COLOURS = {"poisoned": "#d55e00", "undecided": "#e69f00", "no sign of poison": "#009e73"}


@dataclass(frozen=True)
class _Class:
    """One row of the table."""

    name: str
    images: int
    flagged: int
    verdict: Verdict


@dataclass(frozen=True)
class _Card:
    """One image."""

    id: str
    label: str
    score: str
    flagged: bool
    source: str


def run_html(
    isolation: Isolation, data: ImageSet, metrics: Metrics, evidence: Sequence[str], verdicts: Sequence[Verdict]
) -> str:
    """Return one run as a piece of HTML that asks nothing of the network; every name from outside is escaped.

    Args:
        isolation: Scores, flags and verdict, in the order of ``data``.
        data: The images.
        metrics: Of the run.
        evidence: Sentences.
        verdicts: Of the K classes.
    """
    labels, flagged = data.labels.numpy(), isolation.flagged.numpy()
    sizes, counts = (np.bincount(rows, minlength=data.num_classes) for rows in (labels, labels[flagged]))
    rows = [
        _Class(name, int(sizes[k]), int(counts[k]), verdict)
        for k, (name, verdict) in enumerate(zip(data.classes, verdicts, strict=True))
    ]
    rows.sort(key=lambda row: (-row.flagged, row.verdict == "no sign of poison"))
    doubtful = np.isin(labels, np.array(isolation.doubtful, dtype=np.int64))
    first, caption = (flagged, "The most suspect of the flagged images:")
    if not flagged.any():
        first, caption = (doubtful, "Nothing is flagged; the most suspect images of the classes in doubt:")
    if not first.any():
        caption = "Nothing is flagged; the images with the highest scores:"
    scores = np.nan_to_num(isolation.scores.float().numpy(), nan=-np.inf)
    shown = np.lexsort((-scores, ~first))[:_IMAGES].tolist()
    if first.any():
        shown = [row for row in shown if first[row]]
    cards = [
        _Card(
            id=data.ids[row],
            label=data.classes[labels[row]],
            score=tables.number(float(isolation.scores[row])),
            flagged=bool(flagged[row]),
            source=data_uri(data.images[row].permute(1, 2, 0).numpy())[0],
        )
        for row in shown
    ]
    page = _template().render(
        verdict=isolation.verdict,
        colour=_COLOURS[isolation.verdict],
        flagged=int(flagged.sum()),
        images=len(flagged),
        evidence=list(evidence)[:_SENTENCES],
        class_rows=rows[:_CLASSES],
        more_classes=max(0, len(rows) - _CLASSES),
        cards=cards,
        caption=caption,
        metric_rows=tables.metric_rows(metrics),
    )
    return storable(page)


@cache
def _template() -> jinja2.Template:
    return template("antibackdoor.report", "notebook.html.j2", count=tables.grouped)
