"""The part of the page that shows suspects in groups: what stands beside each, and how many have no picture there."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import numpy as np

from antibackdoor.report import tables
from antibackdoor.review.grouping import parts_of, ranking, seen_in

if TYPE_CHECKING:
    from antibackdoor.report.album import Album
    from antibackdoor.stored import StoredRun

__all__ = ["Beside", "ClassPart", "Group", "Link", "Tile", "groups_of", "links_to", "pictured"]

Link = Callable[[int], str]


@dataclass(frozen=True)
class Tile:
    """One suspect: where its file is ("" where that is not known), its picture, and words."""

    id: str
    name: str
    score: str
    truth: str
    seen: str
    link: str
    source: str


@dataclass(frozen=True)
class Beside:
    """Ordinary images of a class: a caption, and the sources of pictures."""

    caption: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Suspects of one class that look alike, the most suspect first."""

    number: int
    images: int
    flagged: int
    portraits: tuple[str, ...]
    beside: tuple[Beside, ...]
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class ClassPart:
    """The groups of one class that have pictures, what was found in it, and what is counted of all its groups."""

    name: str
    verdict: str
    flagged: int
    images: int
    doubtful: bool
    finding: str
    groups: tuple[Group, ...]
    more: int


def groups_of(view: StoredRun, album: Album, link: Link) -> list[ClassPart]:
    """Return the suspects by class and group, the class with the most suspects first, then classes in doubt.

    Args:
        view: The run.
        album: Its pictures.
        link: Gives the address of an image's file, or "".
    """
    order = ranking(view)
    of_class: dict[int, list[tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]]] = {}
    for number, rows in parts_of(album.groups, order[album.groups[order] >= 0]):
        of_class.setdefault(int(view.labels[rows[0]]), []).append((number, rows))
    doubtful = tables.in_doubt(view)
    parts = []
    for label, found in of_class.items():
        shown = [_group(view, album, number, rows, link) for number, rows in found if number in album.portraits]
        parts.append(
            ClassPart(
                name=view.classes[label],
                verdict=view.class_verdicts[label] if view.record.verdict else "not judged",
                flagged=sum(int(view.flagged[rows].sum()) for _, rows in found),
                images=sum(len(rows) for _, rows in found),
                doubtful=label in doubtful,
                finding=view.findings.get(label, ""),
                groups=tuple(shown),
                more=len(found) - len(shown),
            )
        )
    return sorted(parts, key=lambda part: (-part.flagged, not part.doubtful, part.name))


def pictured(parts: Sequence[ClassPart]) -> dict[str, int]:
    """Return how many images the groups hold ("images"), and how many of them have a picture ("with_picture")."""
    return {
        "images": sum(part.images for part in parts),
        "with_picture": sum(len(group.tiles) for part in parts for group in part.groups),
    }


def links_to(view: StoredRun, folder: Path | None) -> Link:
    """Return what gives the address of an image's file from a folder, "" for images that are no file there.

    Args:
        view: The run; where it planted an attack itself, the files are not what it saw.
        folder: Where the page lies, or None for no links.
    """
    data = view.record.config.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    root = Path(str(source)) if source else None
    if folder is None or root is None or view.record.config.get("attack") or not root.is_dir():
        return lambda row: ""
    base = Path(os.path.abspath(folder))

    def link(row: int) -> str:
        file = root / view.ids[row]
        try:
            there = file.is_file()
            return quote(Path(os.path.relpath(os.path.abspath(file), base)).as_posix()) if there else ""
        except (OSError, ValueError):  # another drive, or a name that is none
            return ""

    return link


def _group(
    view: StoredRun, album: Album, number: int, rows: np.ndarray[tuple[int], np.dtype[np.int64]], link: Link
) -> Group:
    label = int(view.labels[rows[0]])
    beside = [Beside(f"ordinary images: {view.classes[label]}", _sources(album, label))]
    seen = seen_in(view, rows)
    if seen is not None:
        words = f"which the network sees in {seen.count:,} of {tables.grouped(seen.of, 'image')}"
        caption = f"ordinary images: {view.classes[seen.label]}, {words}"
        beside.append(Beside(caption, _sources(album, seen.label)))
    return Group(
        number=number + 1,
        images=len(rows),
        flagged=int(view.flagged[rows].sum()),
        portraits=tuple(map(_uri, album.portraits[number])),
        beside=tuple(beside),
        tiles=tuple(_tile(view, row, album.images[row], link(row)) for row in rows.tolist() if row in album.images),
    )


def _tile(view: StoredRun, row: int, content: bytes, link: str) -> Tile:
    truth = ""
    if view.poison is not None:
        truth = "poison" if view.poison[row] else "cover" if view.covered[row] else "clean"
    return Tile(
        id=view.ids[row],
        name=view.ids[row].rsplit("/", 1)[-1],
        score=tables.number(float(view.scores[row])),
        truth=truth,
        seen="" if view.seen is None else view.classes[view.seen[row]],
        link=link,
        source=_uri(content),
    )


def _sources(album: Album, label: int) -> tuple[str, ...]:
    rows: Mapping[int, bytes] = album.images
    return tuple(_uri(rows[row]) for row in album.beside.get(label, ()) if row in rows)


def _uri(content: bytes) -> str:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
