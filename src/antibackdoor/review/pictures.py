"""The images of a run, found again where its data are: matched by id, and never looked for by a path from outside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from antibackdoor.config import RunConfig
from antibackdoor.content import content_hashes
from antibackdoor.data.shards import is_pattern
from antibackdoor.data.sources import EMBEDDED, HUB
from antibackdoor.errors import DataError
from antibackdoor.pipeline import limited, load_data, prepare_poison
from antibackdoor.progress import SILENT, Progress
from antibackdoor.review.pixels import Pictures
from antibackdoor.seeds import Seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.stored import StoredRun
    from antibackdoor.types import ImageSet

__all__ = ["find_pictures"]

_SPLIT = "train/"


def find_pictures(stored: StoredRun, data: str | None = None, progress: Progress = SILENT) -> Pictures:
    """Load the images of a run again, with the attack planted anew where the run planted one.

    Args:
        stored: The run.
        data: Where the images are now, as a source of ``train``; None where they were.
        progress: Told how far it is.

    Returns:
        The pixels; images of the run that are gone have no place.

    Raises:
        DataError: The data are not there, cannot be read, or hold none of the images of the run.
        ConfigError: The run's settings cannot be read.
    """
    config = RunConfig.parse(stored.record.config)
    source = data or config.data.source
    named = source == EMBEDDED or source.startswith(HUB) or is_pattern(source)
    if not named and not Path(source).exists():
        where = "no such folder or file" if data else "the images of this run are not there (any more)"
        raise DataError(f"{source}: {where}; --data DIR says where they are now")
    config = config.model_copy(update={"data": config.data.model_copy(update={"source": source, "test": None})})
    found = _load(config, progress)
    content = content_hashes(found.images)
    places = _places(stored, found.ids, content)
    if places is None:
        raise DataError(
            f"{source}: holds none of the {len(stored.ids):,} images of the run (the first is {stored.ids[0]!r}); "
            "--data DIR names the folder that was scanned"
        )
    changed = np.zeros(len(places), np.bool_)
    if stored.content is not None:
        there = places >= 0
        changed[there] = (stored.content[there] != content[places[there]]).any(1)
    return Pictures(found.images.numpy(), places, changed)


def _load(config: RunConfig, progress: Progress) -> ImageSet:
    if config.attack is not None:
        return prepare_poison(config, progress).train.observed
    return limited(load_data(config.data, progress), config.data, Seeds(config.seed)).train


def _places(stored: StoredRun, ids: Sequence[str], content: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Return where each image of the run is in the set, int64 (N,), by id or by content; None where none of them is."""
    for rename in _renamings():
        index = {rename(name): place for place, name in enumerate(ids)}
        places = np.fromiter((index.get(name, -1) for name in stored.ids), np.int64, len(stored.ids))
        if (places >= 0).any():
            return places
    if stored.content is None:
        return None
    # The ids of arrays are made of the name of their file, which may be another now.
    held = {hashed.tobytes(): place for place, hashed in enumerate(content)}
    places = np.fromiter((held.get(hashed.tobytes(), -1) for hashed in stored.content), np.int64, len(stored.content))
    return places if (places >= 0).any() else None


def _renamings() -> Iterator[Callable[[str], str]]:
    """The folder that was scanned, or the one above or below it."""
    yield str
    yield lambda name: _SPLIT + name
    yield lambda name: name.removeprefix(_SPLIT)
