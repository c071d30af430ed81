"""Which images look alike: a cheap clustering within each class, and pictures of what a group has in common.

An image is compared with the ordinary images of its class: each pixel by how many standard deviations it lies from
their mean, weighted by how far all that are compared lie to the same side. What is always there (a patch in a corner, a
tint) then counts, though it is small, and what goes up and down (light and shade) does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ordinary", "cluster", "difference_of", "fractions", "highlight", "ordinary_of", "shrink"]

_SIDE = 32  # pixels; larger images are compared at this size
_COMPONENTS = 8
_FITTED = 2000  # images of a class that the components and centres are fitted to
_CHUNK = 2048
_FLOOR = 0.06  # of full range; a pixel that never changes has no spread
_MOST_SPREADS = 4.0
_LEAST_WEIGHT = 0.1  # of a pixel in which the images lie on both sides of ordinary, in spreads
_SAME = 1e-3  # spreads; images that differ by less are copies
_MOST_GROUPS = 12
_IMAGES_A_GROUP = 8  # the number of groups of n images is the root of n over this
_PLAIN = 3.0  # what lies less than this many spreads apart does not glow in full
_GLOW = np.array([255.0, 96.0, 0.0])


@dataclass(frozen=True, eq=False)
class Ordinary:
    """What the ordinary images of a class are like.

    Attributes:
        mean: float32 (C, H, W), in [0, 1].
        spread: float32 (C, H, W), standard deviation.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]


def fractions(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images as float32 in [0, 1], in the shape that they have."""
    return images.astype(np.float32) / np.float32(255)


def shrink(images: NDArray[np.uint8], side: int = _SIDE) -> NDArray[np.float32]:
    """Return images as float32 (N, C, h, w) in [0, 1], averaged to at most ``side`` pixels a side.

    Args:
        images: uint8 (N, C, H, W).
        side: In pixels.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    values = torch.from_numpy(np.ascontiguousarray(images)).float() / 255
    height, width = min(side, values.shape[2]), min(side, values.shape[3])
    if (height, width) != tuple(values.shape[2:]):
        values = adaptive_avg_pool2d(values, (height, width))
    small: NDArray[np.float32] = values.numpy()
    return small


def ordinary_of(images: NDArray[np.float32]) -> Ordinary:
    """Return mean and spread of images, float32 (N, C, H, W) in [0, 1]; N is at least 1."""
    return Ordinary(images.mean(0), images.std(0))


def cluster(images: NDArray[np.uint8], ordinary: Ordinary, seed: int = 0) -> NDArray[np.int64]:
    """Put the images of one class into groups that look alike: the largest group is cut in two, again and again.

    Args:
        images: uint8 (N, C, H, W).
        ordinary: Of the class, at the size of :func:`shrink`.
        seed: Of the start of the clustering.

    Returns:
        int64 (N,), a group 0..G-1 each; G is 1 for a few images and 12 at most.
    """
    count = len(images)
    wanted = int(np.clip(round((count / _IMAGES_A_GROUP) ** 0.5), 1, _MOST_GROUPS))
    found = np.zeros(count, np.int64)
    if wanted == 1:
        return found
    fitted = np.sort(np.random.default_rng(seed).permutation(count)[:_FITTED])
    sample = _deviations(images[fitted], ordinary)
    groups = np.zeros(len(sample), np.int64)
    cuts: list[tuple[int, _Cut]] = []
    while len(cuts) + 1 < wanted:
        largest = int(np.bincount(groups).argmax())
        cut = _cut(sample[groups == largest], seed)
        if cut is None:  # copies of one image
            break
        cuts.append((largest, cut))
        _apply(len(cuts), largest, cut, groups, sample)
    for start in range(0, count, _CHUNK):
        chunk = _deviations(images[start : start + _CHUNK], ordinary)
        for number, (group, cut) in enumerate(cuts, 1):
            _apply(number, group, cut, found[start : start + _CHUNK], chunk)
    return np.unique(found, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Cut:
    """A plane that cuts a group in two."""

    direction: NDArray[np.float32]
    threshold: float


def _cut(deviations: NDArray[np.float32], seed: int) -> _Cut | None:
    """Return the plane between two centres, where what all lie to the same side of ordinary in weighs most."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    weights = _LEAST_WEIGHT + np.abs(deviations.mean(0))
    weighted = deviations * weights
    if len(weighted) < 2 or not np.ptp(weighted, axis=0).max() > _SAME:
        return None
    parts = min(_COMPONENTS, *weighted.shape)
    space = PCA(parts, svd_solver="randomized", iterated_power=2, random_state=seed).fit(weighted)
    centres = KMeans(2, n_init=2, random_state=seed).fit(space.transform(weighted)).cluster_centers_
    direction = (centres[1] - centres[0]) @ space.components_
    middle = space.mean_ + centres.mean(0) @ space.components_
    return _Cut((weights * direction).astype(np.float32), float(middle @ direction))


def _apply(number: int, group: int, cut: _Cut, groups: NDArray[np.int64], deviations: NDArray[np.float32]) -> None:
    """Give those of a group that lie beyond the cut a new number, in place."""
    rows = np.flatnonzero(groups == group)
    groups[rows[deviations[rows] @ cut.direction > cut.threshold]] = number


def difference_of(images: NDArray[np.float32], ordinary: Ordinary) -> NDArray[np.float32]:
    """Return how far images are from the ordinary ones of their class, where they agree with one another.

    Args:
        images: float32 (N, C, H, W) in [0, 1].
        ordinary: Of the class, at the same size.

    Returns:
        float32 (H, W), in standard deviations of the images given, or of the ordinary ones for a single image; the
        largest of the channels.
    """
    spread = images.std(0) if len(images) > 1 else ordinary.spread
    far: NDArray[np.float32] = (np.abs(images.mean(0) - ordinary.mean) / (spread + _FLOOR)).max(0)
    return far


def highlight(image: NDArray[np.float32], far: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image in dim grey with what is far from ordinary glowing.

    Args:
        image: float32 (C, H, W) in [0, 1].
        far: float32 (H, W), see :func:`difference_of`; what is farthest glows in full, if it is beyond three.

    Returns:
        uint8 (3, H, W).
    """
    strength = np.clip(far / max(_PLAIN, float(far.max())), 0, 1) ** 1.5
    grey = 40 + 110 * image.mean(0)
    mixed = grey[None] * (1 - strength) + _GLOW[:, None, None] * strength
    shown: NDArray[np.uint8] = mixed.round().astype(np.uint8)
    return shown


def _deviations(images: NDArray[np.uint8], ordinary: Ordinary) -> NDArray[np.float32]:
    """Return float32 (N, C * h * w), each pixel in standard deviations of the ordinary ones."""
    far = (shrink(images) - ordinary.mean) / (ordinary.spread + _FLOOR)
    return far.clip(-_MOST_SPREADS, _MOST_SPREADS).reshape(len(images), -1)
