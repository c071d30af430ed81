"""The images of a run, found again where its data are: matched by id, and never looked for by a path from outside."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
from antibackdoor.seeds import Seeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from antibackdoor.stored import StoredRun
    from antibackdoor.types import ImageSet

__all__ = ["Pictures", "find_pictures", "png"]

_SPLIT = "train/"


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pixels of a run's images.

    Attributes:
        images: uint8 (M, C, H, W), C is 1 or 3; may be mapped from a file and must not be written to.
        places: int64 (N,), where in ``images`` each image of the run is; -1 where it is gone.
        changed: bool (N,), images that are there, but whose pixels are not those that the run saw.
    """

    images: NDArray[np.uint8]
    places: NDArray[np.int64]
    changed: NDArray[np.bool_]

    def pixels(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8 (R, C, H, W) of those rows that are there."""
        places = self.places[rows]
        found: NDArray[np.uint8] = self.images[places[places >= 0]]
        return found


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


def png(pixels: NDArray[np.uint8], largest: int | None = None) -> bytes:
    """Return an image as a PNG file.

    Args:
        pixels: uint8 (C, H, W), C is 1 or 3.
        largest: Shrink it to this many pixels a side, if it has more.
    """
    from PIL import Image

    plain = pixels[0] if pixels.shape[0] == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0))
    image = Image.fromarray(plain)
    if largest is not None and max(image.size) > largest:
        image.thumbnail((largest, largest))
    output = io.BytesIO()
    image.save(output, format="PNG", compress_level=1)
    return output.getvalue()


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
