"""From what a user names (a folder, a manifest, a .npz, ``embedded``, ``hub:NAME``) to image sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from antibackdoor.data.arrays import fit_shape, from_arrays, load_npz, with_classes
from antibackdoor.data.cache import default_cache_dir
from antibackdoor.data.dataset import from_dataset
from antibackdoor.data.embedded import load_embedded
from antibackdoor.data.hub import load_hub
from antibackdoor.data.listed import KINDS, list_images
from antibackdoor.data.reader import Reader
from antibackdoor.errors import ConfigError, DataError
from antibackdoor.progress import SILENT, Progress
from antibackdoor.types import ImageSet

__all__ = ["Loaded", "from_arrays", "from_dataset", "load", "load_beside", "subsample"]

EMBEDDED, HUB = "embedded", "hub:"
NPZ = ".npz"
SMALLEST, LARGEST = 8, 1024


@dataclass(frozen=True)
class Loaded:
    """What a source holds.

    Attributes:
        train: The images to train on.
        test: The images to measure on, same shape and classes, or None where there are none.
    """

    train: ImageSet
    test: ImageSet | None


def load(
    source: str | Path,
    *,
    test: str | Path | None = None,
    image_size: int | None = None,
    skip_bad: bool = False,
    cache_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Loaded:
    """Load images and labels.

    Args:
        source: A folder with one subfolder a class; a folder with ``train/`` and perhaps ``test/`` (or ``val/``,
            ``valid/``, ``validation/``, ``dev/``), each with one subfolder a class; a table of paths and labels,
            .csv or .parquet (see :func:`antibackdoor.data.manifest.load_manifest`); parquet files with the
            images inside, or a folder of them, or one that Hugging Face's ``save_to_disk`` wrote; tar files as
            WebDataset lays them out, by a folder or a pattern such as ``set-{000..009}.tar``; a .npz (see
            :func:`antibackdoor.data.arrays.load_npz`); the word ``embedded``; or ``hub:NAME``. Classes are
            numbered in sorted order of their names.
        test: A folder with one subfolder a class, a table of paths and labels, or a .npz, to use as the test
            set in place of the source's own.
        image_size: Side in pixels, 8 to 1024, of the square that images are resized to, aspect not kept. None
            keeps the size where all have one (128x128 above 256 pixels); for folders with mixed sizes it
            takes that of 32, 48, 64, 96 and 128 which is nearest to the median of the shorter sides, and says
            so.
        skip_bad: Leave out files that cannot be read and list them in ``skipped``; otherwise the first is an
            error.
        cache_dir: Where the decoded images of folders are kept; None means ``$ANTIBACKDOOR_CACHE``, else
            ``$XDG_CACHE_HOME/antibackdoor``, else ``~/.cache/antibackdoor``.
        progress: Told how far it is and what was chosen.

    Returns:
        The training set and, where there is one, the test set, brought to the training set's shape and
        classes.

    Raises:
        ConfigError: ``image_size`` out of range.
        DataError: Nothing there, images or labels that cannot be used, fewer than two classes or than two
            images in one, test classes that the training set lacks.
        StorageError: The cache cannot be written.
    """
    if image_size is not None and not SMALLEST <= image_size <= LARGEST:
        raise ConfigError(f"image_size: {image_size} is outside {SMALLEST} to {LARGEST} pixels")
    reader = Reader(image_size, skip_bad, cache_dir or default_cache_dir(), progress)
    train, own_test = _load_source(source, reader, with_test=test is None)
    chosen = own_test if test is None else _load_test(test, train, reader)
    if chosen is None:
        return Loaded(train, None)
    return Loaded(train, fit_shape(with_classes(chosen, train.classes), train.shape, progress))


def load_beside(
    path: str | Path,
    train: ImageSet,
    *,
    skip_bad: bool = False,
    cache_dir: Path | None = None,
    progress: Progress = SILENT,
) -> ImageSet:
    """Load more images of the classes of a training set, brought to its shape and its numbers.

    Args:
        path: A folder with one subfolder a class, a table of paths and labels, or a .npz.
        train: The training set.
        skip_bad: See :func:`load`.
        cache_dir: See :func:`load`.
        progress: Told how far it is.

    Raises:
        DataError: Nothing there, images or labels that cannot be used, or classes that the training set lacks.
        StorageError: The cache cannot be written.
    """
    reader = Reader(None, skip_bad, cache_dir or default_cache_dir(), progress)
    return fit_shape(with_classes(_load_test(path, train, reader), train.classes), train.shape, progress)


def subsample(data: ImageSet, count: int, generator: torch.Generator) -> ImageSet:
    """Draw images at random, keeping the proportions of the classes.

    Args:
        data: The set.
        count: How many to draw. Each class gets its share rounded by largest remainders, and one at least.
        generator: Source of the draw.

    Returns:
        ``count`` images in the order of ``data``.

    Raises:
        DataError: More than there are, or fewer than there are classes.
    """
    sizes = torch.bincount(data.labels, minlength=data.num_classes)
    present = int((sizes > 0).sum())
    if not present <= count <= len(data):
        raise DataError(
            f"{data.name}: cannot draw {count:,} images of {len(data):,} in {present} classes; "
            f"expected {present:,} to {len(data):,}"
        )
    drawn = []
    for label, take in enumerate(_shares(sizes, count).tolist()):
        members = (data.labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator, device=generator.device).cpu()
        drawn.append(members[order[:take]])
    return data.select(torch.cat(drawn).sort().values)


def _shares(sizes: torch.Tensor, count: int) -> torch.Tensor:
    """Split ``count`` in proportion to ``sizes`` (int64 (K,)) by largest remainders, one at least."""
    exact = sizes.double() * count / sizes.sum()
    shares = torch.maximum(exact.floor().long(), (sizes > 0).long())
    while (missing := count - int(shares.sum())) != 0:
        if missing > 0:
            shares[(exact - shares).argmax()] += 1
        else:  # the classes that were lifted to one image take from those furthest above their share
            shares[(exact - shares).masked_fill(shares <= 1, torch.inf).argmin()] -= 1
    return shares


def _load_source(source: str | Path, reader: Reader, *, with_test: bool) -> tuple[ImageSet, ImageSet | None]:
    if source == EMBEDDED:
        return _resized(load_embedded(), reader)
    if isinstance(source, str) and source.startswith(HUB):
        return load_hub(source.removeprefix(HUB), image_size=reader.image_size, progress=reader.progress)
    splits = list_images(str(source), reader.progress, skip_bad=reader.skip_bad, alone=not with_test)
    if splits is None:
        return _resized(load_npz(_npz(source), training=True), reader)
    train = reader.read(splits.train)
    return train, reader.read(splits.test, like=train) if splits.test is not None and with_test else None


def _load_test(source: str | Path, train: ImageSet, reader: Reader) -> ImageSet:
    splits = list_images(str(source), reader.progress, skip_bad=reader.skip_bad, whole=True)
    if splits is None:
        return load_npz(_npz(source), training=False)[0]
    return reader.read(splits.train, like=train)


def _npz(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix.lower() != NPZ:
        raise DataError(f"{path}: a file, but not a {NPZ} or a table. Expected {KINDS}")
    return path


def _resized(sets: tuple[ImageSet, ImageSet | None], reader: Reader) -> tuple[ImageSet, ImageSet | None]:
    train, test = sets
    side = reader.image_size
    if side is None:
        return train, test
    return fit_shape(train, (train.shape[0], side, side), reader.progress), test
