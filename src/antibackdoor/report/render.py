"""From a view to the page: the facts are put into words and rows here, the layout is in report.html.j2."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import jinja2
import numpy as np
from markupsafe import Markup, escape

from antibackdoor.advice import advise
from antibackdoor.report import charts, tables
from antibackdoor.report.album import SIDE
from antibackdoor.report.groups import groups_of, links_to, pictured
from antibackdoor.report.pages import storable, template

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from antibackdoor.report.album import Album
    from antibackdoor.stored import StoredRun
    from antibackdoor.types import Json, RunRecord

__all__ = ["data_uri", "render"]

_LONGEST = 30  # characters of a path in the gallery
_LARGEST = 96  # pixels a side of an image on the page; 40 of them stay within a megabyte or so


@dataclass(frozen=True)
class _Card:
    """One image of the gallery."""

    path: str
    tail: str
    label: str
    score: str
    flagged: bool
    doubtful: bool
    truth: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class _Key:
    """One line of a chart's legend."""

    name: str
    colour: str
    style: str


@dataclass(frozen=True)
class _Chart:
    """One chart with its words."""

    id: str
    title: str
    svg: Markup
    keys: tuple[_Key, ...]
    caption: str


# What a record says of its data and the page shows elsewhere.
_APART = ("compared", "findings", "groups", "skipped")


def render(view: StoredRun, album: Album | None = None, folder: Path | None = None) -> str:
    """Return one run as a complete HTML page that asks nothing of the network.

    Args:
        view: The run. The same view and album give the same text, byte for byte.
        album: Pictures of its suspects, for the part that shows them in groups; None leaves that out.
        folder: Where the page will lie, for links to the files of the images; None for none.

    Returns:
        The page; style, charts and images are inside it, and every name from outside is escaped.
    """
    record = view.record
    parts = [] if album is None else groups_of(view, album, links_to(view, folder))
    page = _template().render(
        record=record,
        view=view,
        advice=advise(view),
        name=_named(record.data.get("name")) or "Training run",
        identity=_identity(record),
        counts=tables.counts(view),
        metric_rows=tables.metric_rows(view.record.metrics, None if view.poison is None else tables.counts(view)),
        cards=_cards(view),
        parts=parts,
        shown=pictured(parts),
        side=SIDE,
        files=folder is not None,
        card_labels=Counter(view.classes[view.labels[row]] for row in view.gallery_index.tolist()).most_common(),
        shrunk=max(view.gallery.shape[1:3]) > _LARGEST if len(view.gallery) else False,
        largest=_LARGEST,
        charts=_charts(view),
        doubtful=tables.in_doubt(view),
        class_rows=tables.class_rows(view),
        groups=tables.group_rows(record),
        compared=tables.compared_rows(record),
        found=tables.finding_rows(record),
        phase_rows=[(phase, seconds, tables.duration(seconds)) for phase, seconds in record.seconds.items()],
        total=tables.duration(sum(record.seconds.values())),
        settings=list(_flat(record.config)),
        surroundings=[
            ("Device", list(_flat(record.device))),
            ("Versions", list(record.versions.items())),
            ("Seeds", list(_flat(record.seeds))),
            ("Model", list(_flat(record.model))),
            (
                "Data",
                list(_flat({key: value for key, value in record.data.items() if key not in _APART})),
            ),
        ],
        skipped=_skipped(record),
    )
    return storable(page)


@cache
def _template() -> jinja2.Template:
    return template("antibackdoor.report", "report.html.j2", percent=tables.percent, count=tables.grouped, code=_code)


def _code(text: str) -> Markup:
    """Return a text with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _named(value: Json) -> str:
    """Return a setting that is a name, or a mapping with a name."""
    if isinstance(value, dict):
        value = value.get("name")
    return str(value) if isinstance(value, str | int) else ""


def _identity(record: RunRecord) -> list[tuple[str, str]]:
    model = record.model.get("name") or record.config.get("model")
    seed = record.seeds.get("seed", record.config.get("seed"))
    parts = (("Defence", record.config.get("defence")), ("Model", model), ("Seed", seed))
    return [(title, _named(value)) for title, value in parts if _named(value)]


def _skipped(record: RunRecord) -> tuple[int, list[str]]:
    """Return how many files were left out, and their names where they are known."""
    value = record.data.get("skipped")
    if isinstance(value, list):
        return len(value), [str(path) for path in value]
    return (value if isinstance(value, int) else 0), []


def _cards(view: StoredRun) -> list[_Card]:
    cards, doubtful = [], tables.in_doubt(view)
    for row, pixels in zip(view.gallery_index.tolist(), view.gallery, strict=True):
        truth = ""
        if view.poison is not None:
            truth = "poison" if view.poison[row] else "cover" if view.covered[row] else "clean"
        source, width, height = data_uri(pixels)
        cards.append(
            _Card(
                path=view.ids[row],
                tail=_tail(view.ids[row]),
                label=view.classes[view.labels[row]],
                score=tables.number(float(view.scores[row])),
                flagged=bool(view.flagged[row]),
                doubtful=int(view.labels[row]) in doubtful,
                truth=truth,
                source=source,
                width=width,
                height=height,
            )
        )
    return cards


def _tail(path: str) -> str:
    """Return the end of a path, where the file's own name is."""
    return path if len(path) <= _LONGEST else "…" + path[1 - _LONGEST :]


def data_uri(pixels: NDArray[np.uint8]) -> tuple[str, int, int]:
    """Return the pixels (H, W, C) as a PNG data URI, shrunk if they are large, with width and height."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    image.thumbnail((_LARGEST, _LARGEST))
    output = io.BytesIO()
    image.save(output, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(output.getvalue()).decode()}", image.width, image.height


def _keys(groups: Sequence[charts.Group]) -> tuple[_Key, ...]:
    return tuple(
        _Key(f"{group.name}, {tables.grouped(int(group.members.sum()), 'image')}", group.colour, group.style)
        for group in reversed(groups)
    )


def _charts(view: StoredRun) -> list[_Chart]:
    flags, truth = charts.flag_groups(view), charts.truth_groups(view)
    named = [("flag", "flagged and kept", flags)]
    if len(truth) > 1:  # where everything is clean there is nothing to compare
        named.append(("truth", "poison and clean", truth))
    found = []
    if view.phases and np.isfinite(view.losses).any():
        bands = {id(group): charts.loss_band(view.losses, group.members) for group in (*flags, *truth)}
        for key, words, groups in named:
            chart_id, drawn = f"loss-{key}", [bands[id(group)] for group in groups]
            svg = charts.loss_chart(chart_id, view.phases, groups, drawn, tuple(bands.values()))
            caption = _loss_caption(view, drawn)
            found.append(_Chart(chart_id, f"Loss of {words} images", Markup(svg), _keys(groups), caption))
    for key, words, groups in named if view.scored.any() else ():
        chart_id, keys = f"score-{key}", _keys(groups)
        if view.threshold is not None:
            keys += (_Key(f"threshold, {tables.number(view.threshold)}", charts.INK, "solid"),)
        svg = charts.score_chart(chart_id, view, groups)
        found.append(_Chart(chart_id, f"Scores of {words} images", Markup(svg), keys, _score_caption(view)))
    return found


def _loss_caption(view: StoredRun, drawn: Sequence[charts.Band]) -> str:
    caption = "Line: median. Band: from the 10th to the 90th percentile."
    if not charts.phases_fit(view.phases):
        spans = enumerate(charts.phase_spans(view.phases), start=1)
        caption += f" Phases: {', '.join(f'{place} {name}' for place, (name, _, _) in spans)}."
    if any((band.low < charts.FLOOR).any() for band in drawn):
        caption += f" Losses below {charts.FLOOR:.4f} are drawn there."
    return caption


def _score_caption(view: StoredRun) -> str:
    caption = "Counts are on a logarithmic scale."
    if view.threshold is None and all((group & view.scored).any() for group in (view.flagged, ~view.flagged)):
        caption += " One threshold does not explain the flags: some kept images score higher than flagged ones."
    unscored = int((~view.scored).sum())
    if unscored:
        caption += f" Without a score, and not drawn: {tables.grouped(unscored, 'image')}."
    return caption


def _flat(values: Mapping[str, Json], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield ("section.key", value) of nested settings, as ``--set`` takes them."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str) and value != ""
            yield f"{prefix}{key}", str(value) if plain else json.dumps(value, ensure_ascii=False)
