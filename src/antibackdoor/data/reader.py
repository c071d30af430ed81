"""From a list of images to an image set: choose a size, decode once, cache."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.data import cache
from antibackdoor.data.apart import brightest, decode, inspect, warm
from antibackdoor.data.arrays import MIN_SIDE, check_trainable
from antibackdoor.data.decode import WHITE, BadImageError, Header
from antibackdoor.data.listing import Listing
from antibackdoor.data.opening import Payload
from antibackdoor.data.parallel import map_chunks
from antibackdoor.errors import DataError, StorageError
from antibackdoor.progress import Progress
from antibackdoor.types import ImageSet

__all__ = ["Reader", "Sample"]

SIDES = (32, 48, 64, 96, 128)
# Networks here are for small images; a larger set is shrunk unless the caller names a size.
LARGEST_KEPT, SHRUNK_TO = 256, 128
CHUNK_BYTES = 4_000_000

R = TypeVar("R")
Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Sample:
    """Some images of a source.

    Attributes:
        data: The images, with all classes of the source.
        seconds: That one image took.
    """

    data: ImageSet
    seconds: float


@dataclass(frozen=True)
class Reader:
    """Reads images with the same settings.

    Attributes:
        image_size: Side of the square that all images are resized to, or None to choose by inspection.
        skip_bad: Leave out images that cannot be read, and list them; otherwise the first is an error.
        cache_dir: Where decoded images are kept.
        progress: Told how far it is and which size was chosen.
    """

    image_size: int | None
    skip_bad: bool
    cache_dir: Path
    progress: Progress

    def read(self, listing: Listing, *, like: ImageSet | None = None) -> ImageSet:
        """Read the images of a listing, from the cache where it holds the same ones.

        Args:
            listing: The images.
            like: The set whose shape and white a test set is brought to; None for a training set, which chooses
                its own and must hold two classes with two images each.

        Returns:
            The set; its images are mapped from a file.

        Raises:
            DataError: A bad image without ``skip_bad``, or too few images left.
            StorageError: The cache cannot be written.
        """
        if like is None:
            check_trainable(listing.where, listing.classes, torch.tensor(listing.labels))
        if len(set(listing.ids)) < len(listing):
            twice, _ = Counter(listing.ids).most_common(1)[0]
            raise DataError(f"{listing.where}: two images are called {twice!r}; rename one of them")
        named = (listing.classes, listing.labels, listing.ids)
        wanted = None if like is None else (like.shape, like.white)
        settings = repr((named, self.image_size, wanted, self.skip_bad))
        key = cache.content_key(listing.root, listing.files, settings, self.progress)
        entry = cache.fetch(self.cache_dir, key)
        if entry is None:
            self._build(listing, key, like)
            entry = cache.fetch(self.cache_dir, key)
            if entry is None:
                raise StorageError(f"{self.cache_dir / key}: the entry just written cannot be read back")
        else:
            count, _, height, width = entry[0].shape
            self.progress.say(f"{count:,} images of {width}x{height} taken from the cache ({self.cache_dir / key})")
        meta, images = entry
        labels = torch.tensor(meta.labels)
        if like is None:
            check_trainable(listing.where, meta.classes, labels)
        return ImageSet(images, labels, meta.classes, meta.ids, listing.where, meta.skipped, meta.white)

    def sample(self, listing: Listing, count: int) -> Sample:
        """Decode some images as :meth:`read` would, and keep nothing.

        Args:
            listing: The images.
            count: At most how many.

        Raises:
            DataError: A bad image without ``skip_bad``, or too few images in the listing.
        """
        check_trainable(listing.where, listing.classes, torch.tensor(listing.labels))
        warm()
        started = time.perf_counter()
        rows = listing.sample(count)
        headers = dict(self._each("looking at image sizes", listing, rows, inspect, chunk=8))
        _require_any(headers, listing)
        shape = self._choose_shape(listing.where, list(headers.values()))
        white = self._choose_white(listing, [row for row, header in headers.items() if header.wide])
        read = partial(decode, channels=shape[0], height=shape[1], width=shape[2], white=white)
        found = dict(self._each("reading images", listing, tuple(headers), read, chunk=8))
        _require_any(found, listing)
        seconds = (time.perf_counter() - started) / len(rows)
        images = torch.from_numpy(np.stack(list(found.values())))
        labels = torch.tensor([listing.labels[row] for row in found])
        ids = tuple(listing.ids[row] for row in found)
        return Sample(ImageSet(images, labels, listing.classes, ids, listing.where, white=white), seconds)

    def _build(self, listing: Listing, key: str, like: ImageSet | None) -> None:
        headers = dict(self._each("looking at image sizes", listing, range(len(listing)), inspect, chunk=32))
        _require_any(headers, listing)
        if like is None:
            shape = self._choose_shape(listing.where, list(headers.values()))
            white = self._choose_white(listing, [row for row, header in headers.items() if header.wide])
        else:
            shape, white = like.shape, like.white
        read = partial(decode, channels=shape[0], height=shape[1], width=shape[2], white=white)
        write = partial(self._write, listing, tuple(headers), read, shape, white)
        cache.store(self.cache_dir, key, len(headers) * prod(shape), write)

    def _write(
        self,
        listing: Listing,
        rows: Sequence[int],
        read: Callable[[Payload], NDArray[np.uint8]],
        shape: Shape,
        white: int,
        stream: BinaryIO,
    ) -> cache.Meta:
        """Decode ``rows`` in order into ``stream``; one chunk a thread is in memory at a time."""
        chunk = max(1, min(32, CHUNK_BYTES // prod(shape)))
        kept = []
        for row, image in self._each("reading images", listing, rows, read, chunk=chunk):
            # Written, not stored through a mapping: there a full disk is a bus error that ends the process.
            stream.write(image.data)
            kept.append(row)
        _require_any(kept, listing)
        left_out = set(range(len(listing))) - set(kept)
        return cache.Meta(
            shape=(len(kept), *shape),
            labels=tuple(listing.labels[row] for row in kept),
            classes=listing.classes,
            ids=tuple(listing.ids[row] for row in kept),
            skipped=tuple(listing.ids[row] for row in sorted(left_out)),
            white=white,
        )

    def _each(
        self, title: str, listing: Listing, rows: Sequence[int], function: Callable[[Payload], R], *, chunk: int
    ) -> Iterator[tuple[int, R]]:
        """Yield each row with what ``function`` makes of it; leave out bad ones, or stop at the first."""

        def attempt(item: tuple[int, Payload]) -> tuple[int, R | BadImageError]:
            row, payload = item
            try:
                return row, function(payload)
            except BadImageError as error:
                return row, error

        items = zip(rows, listing.payloads(rows), strict=True)
        with self.progress.bar(title, len(rows), "images") as bar:
            for results in map_chunks(attempt, items, chunk=min(chunk, listing.chunk)):
                bad = [(row, result) for row, result in results if isinstance(result, BadImageError)]
                if bad and not self.skip_bad:
                    row, reason = bad[0]
                    raise DataError(
                        f"cannot read the image {listing.place(row)}: {reason} "
                        f"({len(bad)} bad so far). Repair or remove it; --skip-bad leaves such images out"
                    )
                for row, result in results:
                    if not isinstance(result, BadImageError):
                        yield row, result
                bar.advance(len(results))

    def _choose_shape(self, where: str, headers: Sequence[Header]) -> Shape:
        channels = 1 if all(header.grey for header in headers) else 3
        if self.image_size is not None:
            return channels, self.image_size, self.image_size
        sizes = sorted({(header.width, header.height) for header in headers}, key=lambda size: (prod(size), size))
        smallest, largest = sizes[0], sizes[-1]
        if len(sizes) > 1:
            median = statistics.median(min(header.width, header.height) for header in headers)
            side = min(SIDES, key=lambda candidate: abs(candidate - median))
            given = (
                f"images come in {len(sizes)} sizes ({smallest[0]}x{smallest[1]} to "
                f"{largest[0]}x{largest[1]}, median shorter side {median:g})"
            )
        elif max(largest) > LARGEST_KEPT:
            side = SHRUNK_TO
            given = f"images are {largest[0]}x{largest[1]}"
        else:
            width, height = largest
            if min(width, height) < MIN_SIDE:
                raise DataError(
                    f"{where}: images are {width}x{height}; at least {MIN_SIDE}x{MIN_SIDE} are needed. "
                    "--image-size N enlarges them"
                )
            return channels, height, width
        self.progress.say(f"{given}; all are resized to {side}x{side}; --image-size N changes it")
        return channels, side, side

    def _choose_white(self, listing: Listing, wide: Sequence[int]) -> int:
        """Return the value that becomes 255 where grey has more than 8 bits: that of the fewest bits that hold all."""
        if not wide:
            return WHITE
        found = self._each("looking at the range of 16-bit images", listing, wide, brightest, chunk=8)
        highest = max((value for _, value in found), default=0)
        bits = max(8, highest.bit_length())
        white: int = 2**bits - 1
        if white != WHITE:
            self.progress.say(
                f"{len(wide):,} images of more than 8 bits hold values up to {highest:,}: {bits} bits, so {white:,} is "
                "white"
            )
        return white


def _require_any(kept: Collection[int], listing: Listing) -> None:
    if not kept:
        raise DataError(f"{listing.where}: none of the {len(listing):,} images can be read")
