"""Pixels less what images vary in by nature, in which a shared picture stands out; and near-duplicates by them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.models import size_within

__all__ = ["Natural", "originals"]

# Pictures: their side in pixels, principal components of what natural images vary in, images these are
# fitted to, and groups of classes that have them from the others.
_SIDE, _NATURAL, _PICTURES, _GROUPS = 32, 64, 2000, 10
# Copies: images whose whitened pixels differ by less than this share of their own energy, among so many at a time.
_COPY, _AT_A_TIME = 0.15, 4096
_FLOOR = 1e-9


class Natural:
    """What images vary in by nature: taken out, a picture that some of a class share stands out.

    It is taken from other classes, so that a class cannot hide what it holds: classes are dealt into ten groups, and
    each group has it from the classes outside.

    Args:
        seen: What was observed.
    """

    def __init__(self, seen: Seen) -> None:
        self._images, self._labels, self._trained = seen.data.images, seen.labels, seen.trained
        height, width = self._images.shape[2:]
        self._size = size_within(height, width, _SIDE)
        present = np.unique(self._labels)
        self._group = np.zeros(int(present[-1]) + 1, dtype=np.int64)
        self._group[present] = np.arange(len(present)) % _GROUPS
        self._known: dict[int, tuple[NDArray[np.float32], NDArray[np.float32], np.float32]] = {}

    def of(self, label: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return images of a class less their mean, whitened, float32 (n, P)."""
        group = int(self._group[label])
        if group not in self._known:
            self._known[group] = self._outside(group)
        directions, shrink, rest = self._known[group]
        pixels = self._pixels(rows)
        pixels -= pixels.mean(0)
        pixels -= (pixels @ directions.T * shrink) @ directions
        pixels /= np.sqrt(rest)
        return pixels

    def against(self, own: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return images less the mean of others, float32 (n, P), whitened by what these, at least two, vary in."""
        pixels = self._pixels(own)
        mean = pixels.mean(0)
        directions, shrink, rest = _varying(pixels - mean, min(_NATURAL, len(own) // 4))
        pixels = self._pixels(rows) - mean
        pixels -= (pixels @ directions.T * shrink) @ directions
        found: NDArray[np.float32] = pixels / np.sqrt(rest)
        return found

    def _outside(self, group: int) -> tuple[NDArray[np.float32], NDArray[np.float32], np.float32]:
        """Return directions (c, P), how much of each is taken out (c,), and the variance of all others."""
        rows = np.flatnonzero((self._group[self._labels] != group) & self._trained)
        rows = np.random.default_rng(0).permutation(rows)[:_PICTURES]
        pixels, labels = self._pixels(rows), self._labels[rows]
        for label in np.unique(labels):
            pixels[labels == label] -= pixels[labels == label].mean(0)
        return _varying(pixels, _NATURAL)

    def _pixels(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts: list[Tensor] = []
        for part in torch.from_numpy(rows).split(1024):
            images = self._images[part].float().div(255)
            if self._size is not None:
                images = torch.nn.functional.interpolate(images, self._size, mode="area")
            parts.append(images.flatten(1))
        found: NDArray[np.float32] = torch.cat(parts).numpy()
        return found


def originals(pictures: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return, of every image, the place of the first that it is a near-duplicate of, or its own; int64 (n,)."""
    found = np.arange(len(pictures))
    for first in range(0, len(pictures), _AT_A_TIME):
        part = pictures[first : first + _AT_A_TIME]
        energy = (part**2).sum(1)
        both = energy[:, None] + energy
        alike = np.tril(both - 2 * part @ part.T < _COPY * both / 2, -1)
        found[first : first + _AT_A_TIME] = first + np.where(alike.any(1), alike.argmax(1), np.arange(len(part)))
    while not (found[found] == found).all():  # a copy of a copy
        found = found[found]
    return found


def _varying(pixels: NDArray[np.float32], most: int) -> tuple[NDArray[np.float32], NDArray[np.float32], np.float32]:
    """Return directions (c, P) of images (n, P), c at most so many, how much of each to take out, and what remains."""
    from sklearn.decomposition import PCA

    count = min(most, len(pixels) - 1, pixels.shape[1])
    if count < 1 or not np.ptp(pixels, axis=0).any():
        return np.zeros((1, pixels.shape[1]), dtype=np.float32), np.zeros(1, dtype=np.float32), np.float32(_FLOOR)
    found = PCA(count, svd_solver="randomized", random_state=0).fit(pixels)
    rest = max(float(found.noise_variance_), _FLOOR)
    shrink = 1 - np.sqrt(rest / np.maximum(found.explained_variance_, rest))
    return found.components_.astype(np.float32), shrink.astype(np.float32), np.float32(rest)
