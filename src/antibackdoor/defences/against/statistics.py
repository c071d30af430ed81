"""What is kept of a set so that a later batch can be compared with it: sums over its images, and a sample of them.

All are whole numbers, so that the statistics of parts, merged in any order, are those of the whole to the bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from antibackdoor.defences.against.projection import DIMENSIONS, contents_of, pictures_of
from antibackdoor.errors import StorageError
from antibackdoor.files import pack_tensors, read_checked, read_checksums, unpack_tensors
from antibackdoor.types import Encoded, ImageSet

__all__ = ["FILE", "Kept", "Statistics", "View", "read"]

FILE = "statistics.safetensors"
_FORMAT = "antibackdoor statistics 1"
# Images that the sample holds of all classes together, and of each class at least.
_SAMPLE, _LEAST = 10_000, 20
_AT_A_TIME = 4096
_ARRAYS = ("sums", "moments", "sample")
# Cosine between what an encoder sees in the probe now and then; between precisions it is above .999.
_SAME = 0.99


@dataclass(frozen=True, eq=False)
class View:
    """Sums over images in one view, in the steps of ``projection``.

    Attributes:
        sums: int64 (K, 256), of each class.
        moments: int64 (256, 256), sum of outer products over all images.
        sample: int16 (n, 256), single images.
    """

    sums: NDArray[np.int64]
    moments: NDArray[np.int64]
    sample: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Kept:
    """Whose statistics they are.

    Attributes:
        classes: The K class names, in label order.
        shape: C, H, W of the images.
        encoder: Name of the encoder.
        probe: float32 (P, D), what it sees in fixed pictures; see ``encoding.probe``.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    encoder: str
    probe: NDArray[np.float32]

    def agrees(self, encoder: str, probe: NDArray[np.float32]) -> bool:
        """Say whether an encoder is the one of these statistics, by its name and by what it sees in the probe."""
        if encoder != self.encoder or probe.shape != self.probe.shape:
            return False
        lengths = np.linalg.norm(self.probe, axis=1) * np.linalg.norm(probe, axis=1)
        return bool(((self.probe * probe).sum(1) >= _SAME * lengths).all())


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is kept of a set.

    Attributes:
        kept: Whose they are.
        counts: int64 (K,), the images of each class.
        labels: int64 (n,), of the sample.
        keys: int64 (n,), hashes by which the sample was drawn: of every class the smallest.
        contents: What the encoder sees.
        pictures: What the images show.
    """

    kept: Kept
    counts: NDArray[np.int64]
    labels: NDArray[np.int64]
    keys: NDArray[np.int64]
    contents: View
    pictures: View

    @staticmethod
    def of(data: ImageSet, encoded: Encoded, rows: NDArray[np.int64]) -> Statistics:
        """Return the statistics of some images of a set.

        Args:
            data: N images.
            encoded: What an encoder sees in them.
            rows: int64 (n,), the images.
        """
        kept = Kept(data.classes, data.shape, encoded.encoder, encoded.probe)
        parts = [rows[first : first + _AT_A_TIME] for first in range(0, max(1, len(rows)), _AT_A_TIME)]
        return reduce(Statistics.merged, (_of_part(data, encoded, part, kept) for part in parts))

    def merged(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets together; the order does not matter.

        Args:
            other: Of the same classes, shape and encoder.
        """
        labels, keys = (np.concatenate(pair) for pair in ((self.labels, other.labels), (self.keys, other.keys)))
        rows = _drawn(labels, keys, len(self.counts))
        views = [
            View(a.sums + b.sums, a.moments + b.moments, np.concatenate([a.sample, b.sample])[rows])
            for a, b in ((self.contents, other.contents), (self.pictures, other.pictures))
        ]
        return Statistics(self.kept, self.counts + other.counts, labels[rows], keys[rows], *views)

    def packed(self) -> bytes:
        """Return them as a safetensors file, which :func:`read` reads back."""
        arrays = {"counts": self.counts, "labels": self.labels, "keys": self.keys, "probe": self.kept.probe}
        for name in ("contents", "pictures"):
            arrays |= {f"{name}.{part}": getattr(getattr(self, name), part) for part in _ARRAYS}
        header = {
            "format": _FORMAT,
            "encoder": self.kept.encoder,
            "classes": json.dumps(self.kept.classes),
            "shape": json.dumps(self.kept.shape),
        }
        return pack_tensors({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, header)


def read(run: Path) -> Statistics:
    """Read the statistics of a finished run.

    Raises:
        StorageError: It is no finished run, holds none, or they are damaged or of another version.
    """
    if not run.is_dir():
        raise StorageError(f"no run folder at {run}")
    if not (run / "run.json").exists():
        raise StorageError(f"{run} holds no finished run (no run.json)")
    path, checksums = run / FILE, read_checksums(run)
    if FILE not in (checksums or {}):
        raise StorageError(
            f"{run} holds no statistics to compare with: its defence asked no encoder, or an older version wrote it; "
            "scan its set again with the default defence"
        )
    content = read_checked(path, checksums)
    try:
        header, tensors = unpack_tensors(content)
        if header.get("format") != _FORMAT:
            raise StorageError(f"it is of format {header.get('format')!r}, not {_FORMAT!r}")
        return _checked(header, {name: tensor.numpy() for name, tensor in tensors.items()})
    except (StorageError, KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path} is damaged or of another version: {error}") from None


def _checked(header: Mapping[str, str], arrays: Mapping[str, NDArray[np.int64]]) -> Statistics:
    """Return what a file holds, if its parts fit together."""
    classes, shape = tuple(map(str, json.loads(header["classes"]))), tuple(map(int, json.loads(header["shape"])))
    found = Statistics(
        Kept(classes, (shape[0], shape[1], shape[2]), header["encoder"], arrays["probe"].astype(np.float32)),
        arrays["counts"],
        arrays["labels"],
        arrays["keys"],
        *(View(*(arrays[f"{name}.{part}"] for part in _ARRAYS)) for name in ("contents", "pictures")),  # type: ignore[arg-type]
    )
    size, classes_count = len(found.labels), len(classes)
    wanted: dict[str, tuple[int, ...]] = {"counts": (classes_count,), "labels": (size,), "keys": (size,)}
    for name in ("contents", "pictures"):
        wanted |= {
            f"{name}.sums": (classes_count, DIMENSIONS),
            f"{name}.moments": (DIMENSIONS, DIMENSIONS),
            f"{name}.sample": (size, DIMENSIONS),
        }
    for name, expected in wanted.items():
        if arrays[name].shape != expected:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {expected}")
    if size and not 0 <= found.labels.min() <= found.labels.max() < classes_count:
        raise ValueError(f"labels are outside 0..{classes_count - 1}")
    return found


def _of_part(data: ImageSet, encoded: Encoded, rows: NDArray[np.int64], kept: Kept) -> Statistics:
    """Return the statistics of a few thousand images."""
    index = torch.from_numpy(rows)
    labels: NDArray[np.int64] = data.labels[index].numpy()
    contents, pictures = contents_of(encoded.features[rows]), pictures_of(data.images[index])
    keys = np.array([_key(a, b) for a, b in zip(contents, pictures, strict=True)], dtype=np.int64)
    drawn = _drawn(labels, keys, len(kept.classes))
    counts = np.bincount(labels, minlength=len(kept.classes)).astype(np.int64)
    views = [_view(values, labels, len(kept.classes), drawn) for values in (contents, pictures)]
    return Statistics(kept, counts, labels[drawn], keys[drawn], *views)


def _view(values: NDArray[np.int16], labels: NDArray[np.int64], classes: int, drawn: NDArray[np.int64]) -> View:
    sums = np.zeros((classes, DIMENSIONS), dtype=np.int64)
    np.add.at(sums, labels, values.astype(np.int64))
    # Whole numbers that stay below 2 ** 53, so that products of floats are exact.
    exact = values.astype(np.float64)
    return View(sums, (exact.T @ exact).astype(np.int64), values[drawn])


def _key(contents: NDArray[np.int16], pictures: NDArray[np.int16]) -> int:
    digest = hashlib.blake2b(contents.tobytes() + pictures.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _drawn(labels: NDArray[np.int64], keys: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Return the rows of the sample, int64 (n,): of every class those with the smallest keys."""
    most = max(_LEAST, _SAMPLE // classes)
    order = np.lexsort((keys, labels))
    first = np.searchsorted(labels[order], np.arange(classes))
    place = np.arange(len(order)) - first[labels[order]]
    found: NDArray[np.int64] = order[place < most]
    return found
