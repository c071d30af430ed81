"""What would have been found: poison planted into what was seen of a set, in which nothing was found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from antibackdoor.defences.witnesses.decide import combined, p_values
from antibackdoor.defences.witnesses.evidence import AT_A_LOOK, STATISTICS
from antibackdoor.defences.witnesses.natural import Natural
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import parts_of
from antibackdoor.defences.witnesses.scene import Scene
from antibackdoor.defences.witnesses.style import styles_of
from antibackdoor.defences.witnesses.views import SMALLEST_CLASS, Features, views_of
from antibackdoor.ops.triggers import smooth_noise
from antibackdoor.types import ImageSet

__all__ = ["KINDS", "SHARES", "Limit", "detection_limit"]

# Shares of the set, from the least; and planted images that are too few to be a part of a class.
SHARES, _FEWEST = (0.01, 0.02, 0.05, 0.1), 20
# Images that it is measured on, and their bytes: of larger sets the class and a sample of the others stand for all.
_IMAGES, _BYTES = 20_000, 2**29
# Weight of a pattern over an image, as Blend has it, and the side of a mark as a share of the image's.
_BLENDED, _MARK = 0.2, 1 / 8
# What the network answers to such triggers once it has learned them, in -log p of the questions that are put to it: the
# least of seven development runs with a patch, and of four with a blended pattern (docs/log.md).
_ANSWERS = {"a mark": 13.0, "a blended pattern": 4.0}

Stamp = Callable[[Tensor], Tensor]
Encode = Callable[[ImageSet], np.ndarray]


@dataclass(frozen=True)
class Limit:
    """The smallest share of the set that was found, by kind of trigger.

    Attributes:
        label: The class that it was planted in.
        found: Share of the set, None where not even the largest that was tried is found.
    """

    label: int
    found: dict[str, float | None]

    @property
    def blind(self) -> bool:
        """Not even a mark would have been found."""
        return self.found["a mark"] is None


def detection_limit(seen: Seen, encode: Encode, alpha: float) -> Limit | None:
    """Plant poison into what was seen, and return from which share on it is found; None where no class can have any.

    Images of other classes are put under the label of a class of middling size, with a trigger: their pixels and their
    features are what they would be, they count as learned like images that belong there, and what the network would
    make of the trigger is the least that it made of such triggers in development. Nothing is trained.

    Args:
        seen: What was observed; it is left as it is.
        encode: Features of images, float32 (n, D), as those in ``seen``.
        alpha: As of the decision.

    Source:
        Ours. Spike-ins are how an assay's limit of detection is stated.
    """
    sizes = np.bincount(seen.labels[seen.trained], minlength=seen.data.num_classes)
    able = np.flatnonzero(sizes >= SMALLEST_CLASS)
    if not len(able) or (sizes > 0).sum() < 2:
        return None
    label = int(able[np.argsort(sizes[able], kind="stable")[len(able) // 2]])
    sample = _sample(seen, label)
    return Limit(label, {kind: _least(sample, encode, alpha / len(able), label, kind) for kind in KINDS})


def _sample(seen: Seen, label: int) -> Seen:
    """Return what was seen of so many images as may be copied: of the class at most as many as of all others."""
    most = min(_IMAGES, _BYTES // seen.data.images[0].numel())
    if len(seen.labels) <= most:
        return seen
    order = np.random.default_rng(0).permutation(len(seen.labels))
    own = seen.labels[order] == label
    inside = order[own][: most // 2]
    return seen.at(np.sort(np.concatenate([inside, order[~own][: most - len(inside)]])))


def _least(seen: Seen, encode: Encode, alpha: float, label: int, kind: str) -> float | None:
    """Return the least share that is found; where one is not, no smaller one is tried."""
    others = np.flatnonzero((seen.labels != label) & seen.trained)
    order = np.random.default_rng(0).permutation(others)
    least: float | None = None
    for share in reversed(SHARES):
        count = round(share * len(seen.labels))
        if not _FEWEST <= count <= len(order) // 2:
            continue
        planted = _planted(seen, encode, label, np.sort(order[:count]), KINDS[kind])
        if p_values([(_strongest(planted, label) + _ANSWERS[kind], 0.0)])[0][0] > alpha:
            break
        least = share
    return least


def _planted(seen: Seen, encode: Encode, label: int, rows: np.ndarray, stamp: Stamp) -> Seen:
    """Return what would have been seen with these rows, int64 (n,), stamped and under the label."""
    images, labels = seen.data.images.clone(), seen.data.labels.clone()
    index = torch.from_numpy(rows)
    images[index] = stamp(images[index].float().div(255)).clamp(0, 1).mul(255).round().to(torch.uint8)
    labels[index] = label
    data = dataclasses.replace(seen.data, images=images, labels=labels)
    features, styles, trajectories = seen.features.copy(), seen.styles.copy(), seen.trajectories.copy()
    features[rows], styles[rows] = encode(data.select(index)), styles_of(images[index])
    own = np.flatnonzero((seen.labels == label) & seen.trained)
    trajectories[:, rows] = seen.trajectories[:, np.random.default_rng(0).choice(own, len(rows))]
    return dataclasses.replace(seen, data=data, features=features, styles=styles, trajectories=trajectories)


def _strongest(seen: Seen, label: int) -> float:
    """Return the sum of -log p of the part of the class that comes off worst by what needs no network."""
    features = Features(seen)
    scene = Scene(seen, features, label)
    sums = [
        combined({name: STATISTICS[name](scene, part) for name in AT_A_LOOK})
        for views in views_of(seen, features, Natural(seen), only=label)
        for part in parts_of(views)
    ]
    return max(sums, default=0.0)


def _mark(images: Tensor) -> Tensor:
    """Set a chequered square, an eighth of the side, near the lower right corner."""
    side = max(3, round(_MARK * min(images.shape[-2:])))
    squares = torch.arange(side)
    chequered = ((squares[:, None] + squares) % 2).to(images.dtype)
    stamped = images.clone()
    stamped[..., -side - 1 : -1, -side - 1 : -1] = chequered
    return stamped


def _pattern(images: Tensor) -> Tensor:
    """Blend a smooth pattern in, at a fifth."""
    channels, height, width = images.shape[1:]
    pattern = smooth_noise((channels, height, width), torch.Generator().manual_seed(0))
    return (1 - _BLENDED) * images + _BLENDED * pattern


KINDS: dict[str, Stamp] = {"a mark": _mark, "a blended pattern": _pattern}
