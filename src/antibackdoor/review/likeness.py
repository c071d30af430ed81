"""Which images look alike: a cheap clustering within each class, and pictures of what a group has in common.

An image is compared with the ordinary images of its class: each pixel by how many standard deviations it lies from
their mean. What is always there (a patch in a corner, a tint) then counts as much as the whole object does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Ordinary", "cluster", "difference_of", "fractions", "highlight", "ordinary_of", "shrink"]

_SIDE = 32  # pixels; larger images are compared at this size
_COMPONENTS = 32
_FITTED = 2000  # images of a class that the components and centres are fitted to
_CHUNK = 2048
_FLOOR = 0.06  # of full range; a pixel that never changes has no spread
_MOST_SPREADS = 4.0
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
    """Put the images of one class into groups that look alike.

    Args:
        images: uint8 (N, C, H, W).
        ordinary: Of the class, at the size of :func:`shrink`.
        seed: Of the start of the clustering.

    Returns:
        int64 (N,), a group 0..G-1 each; G is 1 for a few images and 12 at most.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    count = len(images)
    groups = int(np.clip(round((count / _IMAGES_A_GROUP) ** 0.5), 1, _MOST_GROUPS))
    if groups == 1:
        return np.zeros(count, np.int64)
    random = np.random.default_rng(seed)
    fitted = np.sort(random.permutation(count)[:_FITTED])
    sample = _deviations(images[fitted], ordinary)
    components = PCA(min(_COMPONENTS, *sample.shape), svd_solver="randomized", random_state=seed).fit(sample)
    places = components.transform(sample)
    groups = min(groups, len(np.unique(places.round(4), axis=0)))  # copies of one image are one place
    centres = KMeans(groups, n_init=2, max_iter=50, random_state=seed).fit(places)
    found = [
        centres.predict(components.transform(_deviations(images[start : start + _CHUNK], ordinary)))
        for start in range(0, count, _CHUNK)
    ]
    return np.concatenate(found).astype(np.int64)


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
