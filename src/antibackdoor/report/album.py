"""The pictures of all suspects in groups, small, as they are kept with a run: its page can be written again from them.

They are made of the images that the run looked at, when it ends, and lie in ``album.npz``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from antibackdoor.data.picture import as_image
from antibackdoor.errors import StorageError
from antibackdoor.review.grouping import Grouping, drawn, parts_of, ranking, seen_in
from antibackdoor.review.likeness import difference_of, fractions, highlight, ordinary_of
from antibackdoor.review.pixels import Pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.stored import StoredRun

__all__ = ["GROUPS", "PICTURES", "SIDE", "Album", "pack", "suspects_album", "unpack"]

PICTURES = 1000  # suspects that have a picture
GROUPS = 60  # groups that have pictures
SIDE = 64  # pixels a side of a picture
_IN_DOUBT = 60  # images of each class in doubt
_ORDINARY = 6  # of a class beside a group
_AVERAGED = 400  # images behind the picture of a group
_AS_IT_IS = 40  # pixels a side up to which a picture is kept exactly
_QUALITY = 88  # of JPEG


@dataclass(frozen=True, eq=False)
class Album:
    """Small pictures of suspects, and of what stands beside them.

    Attributes:
        groups: int64 (N,), the group of each suspect and of the most suspect images of classes in doubt, the most
            suspect group is 0; -1 of all other images.
        beside: Rows of ordinary images, by label.
        images: PNG or JPEG files by row.
        portraits: PNG or JPEG files by group: the mean of the group, that of ordinary images, and what differs.
    """

    groups: NDArray[np.int64]
    beside: Mapping[int, tuple[int, ...]]
    images: Mapping[int, bytes]
    portraits: Mapping[int, tuple[bytes, ...]]


def suspects_album(stored: StoredRun, images: NDArray[np.uint8]) -> Album:
    """Group the suspects of a run by class and likeness, and make their pictures.

    Args:
        stored: The run.
        images: uint8 (N, C, H, W), as the run saw them.

    Returns:
        The album; at most ``PICTURES`` suspects of at most ``GROUPS`` groups have pictures, shared out evenly.
    """
    count = len(stored.ids)
    pictures = Pictures(images, np.arange(count, dtype=np.int64), np.zeros(count, np.bool_))
    grouping = Grouping(stored, pictures, _in_doubt(stored))
    groups = grouping.clusters
    order = ranking(stored)
    shown = [part for part in parts_of(groups, order[groups[order] >= 0]) if part[0] < GROUPS]
    labels = {int(stored.labels[rows[0]]) for _, rows in shown}
    for _, rows in shown:
        seen = seen_in(stored, rows)
        if seen is not None:
            labels.add(seen.label)
    beside = {label: tuple(grouping.ordinary(label, _ORDINARY).tolist()) for label in sorted(labels)}
    wanted = {row for rows in beside.values() for row in rows}
    for rows, take in zip(
        (rows for _, rows in shown), _shares([len(rows) for _, rows in shown], PICTURES), strict=True
    ):
        wanted.update(rows[:take].tolist())
    return Album(
        groups,
        beside,
        {row: _encoded(images[row]) for row in sorted(wanted)},
        {group: _portraits(grouping, rows) for group, rows in shown},
    )


def _in_doubt(stored: StoredRun) -> NDArray[np.bool_]:
    """Return the most suspect images of classes in doubt, bool (N,); none where all classes are."""
    found = np.zeros(len(stored.ids), np.bool_)
    order = ranking(stored)
    if len(stored.doubtful) < len(stored.classes):
        for label in stored.doubtful:
            found[order[(stored.labels[order] == label) & ~stored.flagged[order]][:_IN_DOUBT]] = True
    return found


def _shares(sizes: list[int], total: int) -> list[int]:
    """Share out a total: to each as much as to the others, and no more than it has."""
    shares, left = [0] * len(sizes), total
    open_ = sorted(range(len(sizes)), key=sizes.__getitem__)
    for position, at in enumerate(open_):
        shares[at] = min(sizes[at], left // (len(open_) - position))
        left -= shares[at]
    return shares


def _portraits(grouping: Grouping, rows: NDArray[np.int64]) -> tuple[bytes, ...]:
    label = int(grouping.stored.labels[rows[0]])
    ordinary = ordinary_of(fractions(grouping.pictures.pixels(grouping.ordinary(label, _AVERAGED))))
    own = fractions(grouping.pictures.pixels(drawn(rows, _AVERAGED)))
    mean = own.mean(0)
    means = [(255 * values).round().astype(np.uint8) for values in (mean, ordinary.mean)]
    return tuple(_encoded(picture) for picture in (*means, highlight(mean, difference_of(own, ordinary))))


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    """Return an image as a small file: exactly as PNG up to 40 pixels a side, else at most ``SIDE``, as JPEG.

    Args:
        pixels: uint8 (C, H, W), C is 1 or 3.
    """
    image = as_image(pixels)
    output = io.BytesIO()
    if max(image.size) <= _AS_IT_IS:
        image.save(output, format="PNG", optimize=True)
    else:
        image.thumbnail((SIDE, SIDE))
        image.save(output, format="JPEG", quality=_QUALITY, subsampling=0, optimize=True)
    return output.getvalue()


def pack(album: Album) -> dict[str, NDArray[Any]]:
    """Return an album as arrays; :func:`unpack` takes them back."""
    files = [*album.images.values(), *(part for parts in album.portraits.values() for part in parts)]
    return {
        "groups": album.groups,
        "beside": np.frombuffer(json.dumps([*album.beside.items()]).encode(), np.uint8),
        "images": np.array([*album.images], np.int64),
        "portraits": np.array([*album.portraits], np.int64),
        "sizes": np.array([len(file) for file in files], np.int64),
        "content": np.frombuffer(b"".join(files), np.uint8),
    }


def unpack(arrays: Mapping[str, NDArray[Any]], stored: StoredRun) -> Album:
    """Return the album that :func:`pack` made arrays of.

    Raises:
        StorageError: They are none of this run's.
    """
    try:
        for name in ("groups", "images", "portraits", "sizes"):
            if arrays[name].dtype != np.int64:
                raise TypeError(f"{name} is of type {arrays[name].dtype}, expected int64")
        files = _files(arrays)
        images = {int(row): next(files) for row in arrays["images"]}
        portraits = {int(group): (next(files), next(files), next(files)) for group in arrays["portraits"]}
        beside = {int(label): tuple(map(int, rows)) for label, rows in json.loads(arrays["beside"].tobytes())}
        album = Album(arrays["groups"], beside, images, portraits)
    except (KeyError, StopIteration, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise StorageError(f"the album of the run is damaged or of another version: {error}") from None
    count, rows = len(stored.ids), [*images, *(row for rows in beside.values() for row in rows)]
    if album.groups.shape != (count,) or not all(0 <= row < count for row in rows):
        raise StorageError("the album of the run is damaged or that of another run")
    return album


def _files(arrays: Mapping[str, NDArray[Any]]) -> Iterator[bytes]:
    content, start = arrays["content"].tobytes(), 0
    for size in arrays["sizes"].tolist():
        yield content[start : start + size]
        start += size
