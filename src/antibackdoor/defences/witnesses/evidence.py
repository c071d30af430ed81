"""Evidence on a part of a class: small functions of one signature, each a statistic that is large where it is poison.

``STATISTICS`` is the table: ``(Scene, Part) -> float``. What each gives on clean trainings is its null, in
``calibration``; a statistic is worth nothing without one. To add one, write a function, give it a line in the table and
print its null with ``benchmarks/bank/replay.py --null``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import Part, shared_picture
from antibackdoor.defences.witnesses.views import Features
from antibackdoor.training import evaluating

__all__ = ["STATISTICS", "Scene", "Statistic", "diversity", "misplaced", "mixing", "picture", "turning"]

# Images of other classes that are tried on, and images of either side of a class that take part.
_HOSTS, _DONORS, _DESCRIBED, _CHUNK = 120, 120, 400, 128
_LEARNED = 0.7  # probability from which a label counts as learned
# Most that may be taken from an image of another class: what replaces it altogether is another image, not a trigger.
_REPLACED = 0.5
_STEADY = 0.02  # of the spread of all activations: below it a pixel counts as constant


@dataclass(frozen=True, eq=False)
class Scene:
    """One class, and what its parts are tried on.

    Attributes:
        seen: What was observed.
        features: Of all images, with classifiers.
        label: The class.
    """

    seen: Seen
    features: Features
    label: int

    @cached_property
    def hosts(self) -> NDArray[np.int64]:
        """Rows of other classes, int64 (M,), as evenly over them as their sizes allow, always the same ones."""
        labels = self.seen.labels
        rows = np.flatnonzero((labels != self.label) & self.seen.trained)
        order = np.random.default_rng(0).permutation(rows)
        rank = np.zeros(len(order), dtype=np.int64)
        for other in np.unique(labels[order]):
            own = labels[order] == other
            rank[own] = np.arange(own.sum())
        return order[np.argsort(rank, kind="stable")][:_HOSTS]

    @cached_property
    def host_pixels(self) -> Tensor:
        """The hosts, float (M, C, H, W) in [0, 1]."""
        return _pixels(self.seen.data.images, self.hosts)

    @cached_property
    def taken_before(self) -> NDArray[np.float64]:
        """Float64 (M,), 1 where a host is taken for the class as it is."""
        return _taken(self.seen, self.host_pixels, self.label)

    def share_of_fewest(self, turned: NDArray[np.float64]) -> float:
        """Return the mean over the lower half of the hosts' classes of the mean of each; turned is (M,)."""
        sources = self.seen.labels[self.hosts]
        means = np.sort([turned[sources == source].mean() for source in np.unique(sources)])
        return float(means[: max(1, len(means) // 2)].mean())


Statistic: TypeAlias = Callable[[Scene, Part], float]


def turning(scene: Scene, part: Part) -> float:
    """Return how far what the part has, and the rest of its class has not, turns images of other classes into it.

    At every place, mean and spread of the part are compared with those of the rest, and images of other classes are
    changed alike: a patch replaces what is there, a blended picture weakens it and adds its own, a cast scales it. That
    is done once on pixels and once on what the network's first convolution makes of them, where textures are. The
    statistic is the share that is turned, less the share that is taken for the class anyway, averaged over both and
    over the half of the source classes in which fewest are: a trigger turns images of any class, what is typical of a
    class only those that are like it.

    Source:
        Ours. The question is that of trigger inversion (Neural Cleanse, S&P 2019), answered without optimising.
    """
    seen, rows = scene.seen, part.views.rows
    sides = [side[_spread(len(side), _DESCRIBED)] for side in (rows[part.members], rows[~part.members])]
    first = next(module for module in seen.network.modules() if isinstance(module, nn.Conv2d))
    in_pixels, in_stem = (_change(*(_moments(seen, side, place) for side in sides)) for place in (None, first))
    after = [_taken(seen, in_pixels(scene.host_pixels).clamp(0, 1), scene.label)]
    with _changed(first, in_stem):
        after.append(_taken(seen, scene.host_pixels, scene.label))
    return float(np.mean([scene.share_of_fewest(taken - scene.taken_before) for taken in after]))


def mixing(scene: Scene, part: Part) -> float:
    """Return how much more firmly images of the part keep their class than the rest when mixed with foreign ones.

    Every image is averaged with one of another class; the statistic is the mean probability of its own label in the
    part, less that in the rest. A trigger, wherever it is in the image, outweighs the other picture.

    Source:
        STRIP (ACSAC 2019) asks for the entropy of such mixtures; here parts of one class are compared.
    """
    rows, inside = part.views.rows, part.members
    images, kept = scene.seen.data.images, []
    for side in (rows[inside], rows[~inside]):
        donors = side[_spread(len(side), min(_DONORS, len(scene.hosts)))]
        mixed = (_pixels(images, donors) + scene.host_pixels[: len(donors)]) / 2
        kept.append(float(_probability(scene.seen, mixed, scene.label).mean()))
    return kept[0] - kept[1]


def diversity(scene: Scene, part: Part) -> float:
    """Return how much more the part's contents differ, as those of other classes do, than the rest's: a log ratio.

    In the directions of feature space in which the other classes differ, a part of a clean class is spread as its class
    is, wherever it lies; images of many classes under one label are spread as those classes are, whatever trigger they
    share. The ratio of variances is weighted by the share of the part that is learned. Of two classes, images of the
    other one alone can be under a wrong label, so that it says nothing, and is 0.

    Source:
        Ours; after SCAn (USENIX Security 2021), which takes a class apart by the variation that all classes share.
    """
    inside, views = part.members, part.views
    if len(np.unique(scene.seen.labels)) < 3:
        return 0.0
    spread = [float((views.white[side] @ views.between).var(0).mean()) for side in (inside, ~inside)]
    learned = float(_learned(scene.seen, views.rows[inside]).mean())
    return learned * float(np.log(max(spread[0], 1e-9) / max(spread[1], 1e-9)))


def misplaced(scene: Scene, part: Part) -> float:
    """Return the share of the part that looks like other classes though it is learned, by how many classes these are.

    A classifier of the encoder's features that was fitted without the part says what each of its images shows. The
    share that shows another class and is learned all the same is multiplied by the entropy of these classes, as a share
    of the largest that there could be: an odd kind of a clean class looks like one other class, not like all of them.

    Source:
        Ours; that mislabelled neighbours tell poison is the idea of Deep k-NN (Peri et al., ECCV workshops 2020).
    """
    rows = part.views.rows[part.members]
    shown = scene.features.seen_without(rows)
    wrong = shown != scene.label
    if not wrong.any():
        return 0.0
    counts = np.unique(shown[wrong], return_counts=True)[1] / wrong.sum()
    others = len(np.unique(scene.seen.labels)) - 1
    entropy = -float((counts * np.log(counts)).sum() / np.log(max(2, others)))
    return entropy * float((wrong & _learned(scene.seen, rows)).mean())


def picture(scene: Scene, part: Part) -> float:
    """Return how far the part stands off the rest by the picture that it shares, in standard deviations of both.

    Natural images differ gradually in whatever they share; a picture is there or not.

    Source:
        Ours: the discriminability d' of a matched filter (Green and Swets, 1966).
    """
    likeness = shared_picture(part)
    inside, outside = likeness[part.members], likeness[~part.members]
    spread = np.sqrt((inside.var() + outside.var()) / 2)
    return float((inside.mean() - outside.mean()) / max(spread, 1e-9))


STATISTICS: dict[str, Statistic] = {
    "turning": turning,
    "mixing": mixing,
    "diversity": diversity,
    "misplaced": misplaced,
    "picture": picture,
}


@dataclass(frozen=True, eq=False)
class _Change:
    """An affine map at every place of an image or of its activations: x + share (x - middle) + shift."""

    middle: Tensor
    share: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x + (x - self.middle) * self.share + self.shift


def _change(part: tuple[Tensor, Tensor], rest: tuple[Tensor, Tensor]) -> _Change:
    """Return what makes the rest's means and spreads those of the part, within what leaves half of an image."""
    steady = _STEADY * float((part[1] ** 2 + rest[1] ** 2).mean().sqrt()) + 1e-6
    ratio = ((part[1] + steady) / (rest[1] + steady)).clamp(0, 1.5)
    replaced = float((1 - ratio).clamp_min(0).mean())
    within = min(1.0, _REPLACED / max(replaced, 1e-6))
    return _Change(rest[0], within * (ratio - 1), within * (part[0] - rest[0]))


class _Enough(Exception):  # noqa: N818 - no error: it ends a forward pass
    """What was asked of a forward pass is there."""


@torch.no_grad()
def _moments(seen: Seen, rows: NDArray[np.int64], place: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation at every place, of pixels or of what a layer makes of them."""
    total, squares = torch.zeros(()), torch.zeros(())
    for part in np.array_split(rows, -(-len(rows) // _CHUNK)):
        x = _pixels(seen.data.images, part)
        if place is not None:
            x = _activations(seen, x, place)
        total, squares = total + x.sum(0), squares + (x**2).sum(0)
    mean = total / len(rows)
    return mean, (squares / len(rows) - mean**2).clamp_min(0).sqrt()


def _activations(seen: Seen, pixels: Tensor, place: nn.Module) -> Tensor:
    """Return what a layer makes of images, float32 on the CPU, without the layers after it."""
    found: list[Tensor] = []

    def stop(_: nn.Module, __: Any, output: Tensor) -> None:
        found.append(output.float().cpu())
        raise _Enough

    handle = place.register_forward_hook(stop)
    try:
        _logits(seen, pixels)
    except _Enough:
        pass
    finally:
        handle.remove()
    return found[0]


@contextmanager
def _changed(place: nn.Module, change: _Change) -> Iterator[None]:
    """Have a layer's output changed for the time being."""
    handle = place.register_forward_hook(
        lambda _, __, output: _Change(
            *(part.to(output.device, output.dtype) for part in (change.middle, change.share, change.shift))
        )(output)
    )
    try:
        yield
    finally:
        handle.remove()


def _learned(seen: Seen, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = seen.trajectories[-1, rows] < np.log(-np.log(_LEARNED))
    return found


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many indices, evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _pixels(images: Tensor, rows: NDArray[np.int64]) -> Tensor:
    return images[torch.from_numpy(rows)].float().div(255)


@torch.no_grad()
def _logits(seen: Seen, pixels: Tensor) -> Tensor:
    with evaluating(seen.network), seen.runtime.autocast():
        given = pixels.to(seen.runtime.device, memory_format=torch.channels_last)
        logits: Tensor = seen.network(given)
    return logits.float().cpu()


def _probability(seen: Seen, pixels: Tensor, label: int) -> NDArray[np.float64]:
    parts = [_logits(seen, batch).softmax(1)[:, label] for batch in pixels.split(_CHUNK)]
    found: NDArray[np.float64] = torch.cat(parts).double().numpy()
    return found


def _taken(seen: Seen, pixels: Tensor, label: int) -> NDArray[np.float64]:
    """Return 1 where an image, float (M, C, H, W) in [0, 1], is taken for a class, float64 (M,)."""
    return (_probability(seen, pixels, label) > 0.5).astype(np.float64)
