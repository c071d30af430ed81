"""A class and what its parts are tried on: images of other classes, changed, mixed, and shown to the network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import Part
from antibackdoor.defences.witnesses.views import Features, evenly
from antibackdoor.models import Resized
from antibackdoor.training import evaluating

__all__ = ["Scene", "high_pass"]

Floats = NDArray[np.float64]

# Images of other classes that are tried on, images of either side of a class that are put on them, images of a class
# whose activations are described, and images at a time.
_HOSTS, _DONORS, _DESCRIBED, _CHUNK = 120, 120, 4096, 128
_LEARNED = 0.7  # probability from which a label counts as learned
# Most that may be taken from an image of another class: what replaces it altogether is another image, not a trigger.
_REPLACED = 0.5
# Groups by how foreign images look, and at least as many images in each.
_BINS = 20
_LARGEST = 65504.0  # in half precision
_STEADY = 0.02  # of the spread of all activations: below it a pixel counts as constant


@dataclass(frozen=True, eq=False)
class Scene:
    """One class, and what its parts are tried on.

    Attributes:
        seen: What was observed.
        features: Of all images, with classifiers.
        label: The class.
        source: A class that alone is tried on; None for all others.
    """

    seen: Seen
    features: Features
    label: int
    source: int | None = None

    @cached_property
    def _described(self) -> dict[nn.Module | None, tuple[Tensor, _Sums]]:
        return {}

    @cached_property
    def hosts(self) -> NDArray[np.int64]:
        """Rows of other classes, int64 (M,), as evenly over them as their sizes allow, always the same ones."""
        labels = self.seen.labels
        others = labels != self.label if self.source is None else labels == self.source
        rows = np.flatnonzero(others & self.seen.trained)
        order = np.random.default_rng(0).permutation(rows)
        # The place of each within its class, in that order.
        by_class = np.argsort(labels[order], kind="stable")
        sizes = np.unique(labels[order], return_counts=True)[1]
        rank = np.empty(len(order), dtype=np.int64)
        rank[by_class] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[np.argsort(rank, kind="stable")][:_HOSTS]

    @cached_property
    def host_pixels(self) -> Tensor:
        """The hosts, float (M, C, H, W) in [0, 1]."""
        return self._pixels(self.hosts)

    @cached_property
    def taken_before(self) -> Floats:
        """Float64 (M,), 1 where a host is taken for the class as it is."""
        return self._taken(self.host_pixels)

    @cached_property
    def returned(self) -> int:
        """Learned images of other classes that show this one, by the encoder's classifier."""
        rows = np.flatnonzero((self.features.shown == self.label) & (self.seen.labels != self.label))
        return int(self.learned(rows).sum())

    @cached_property
    def convolutions(self) -> tuple[nn.Module, ...]:
        """The network's first convolution, and those a third and two thirds of the way."""
        found = [module for module in self.seen.network.modules() if isinstance(module, nn.Conv2d)]
        return tuple(found[len(found) * third // 3] for third in range(3))

    @cached_property
    def lead(self) -> Floats:
        """How much sooner each image was learned than those of other classes that look as foreign, float64 (N,).

        In deviations of theirs; of the mean log-loss over all epochs but the first.
        """
        others = self.seen.labels != self.label
        foreign, losses = self.features.foreign, self.seen.trajectories[1:].mean(0)
        bins = max(1, min(_BINS, int(others.sum()) // _BINS))
        edges = np.quantile(foreign[others], np.linspace(0, 1, bins + 1)[1:-1])
        place = np.digitize(foreign, edges)
        middle, spread = np.zeros(bins), np.ones(bins)
        for number in range(bins):
            alike = losses[others & (place == number)]
            if len(alike):
                middle[number], spread[number] = np.median(alike), alike.std() + _STEADY
        found: Floats = (middle[place] - losses) / spread[place]
        return found

    def learned(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the network gives each image its label with .7 and more, bool (n,)."""
        found: NDArray[np.bool_] = self.seen.trajectories[-1, rows] < np.log(-np.log(_LEARNED))
        return found

    def donors(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return images of a part and of the rest of its class, float (n, C, H, W) each, at most as many as hosts."""
        rows, most = part.views.rows, min(_DONORS, len(self.hosts))
        sides = (rows[part.members], rows[~part.members])
        inside, outside = (self._pixels(side[evenly(len(side), most)]) for side in sides)
        return inside, outside

    def probability(self, pixels: Tensor) -> Floats:
        """Return the network's probability of the class, float64 (n,), for images, float (n, C, H, W) in [0, 1]."""
        parts = [self._logits(batch.clamp(0, 1)).softmax(1)[:, self.label] for batch in pixels.split(_CHUNK)]
        found: Floats = torch.cat(parts).double().numpy()
        return found

    def turned(self, rows: NDArray[np.int64], inside: NDArray[np.bool_], place: nn.Module | None) -> float:
        """Return the share of hosts that are turned where they are changed as some images differ from others.

        At every place of an image, mean and spread are changed as they change from those outside to those inside.
        The share is that which is taken for the class, less that which is anyway, over the half of the source classes
        in which it is least: a trigger turns images of any class, what is typical of a class those that are like it.

        Args:
            rows: int64 (n,), the same at every call.
            inside: bool (n,).
            place: A layer whose output is changed, or None for pixels.
        """
        moments = self._moments(rows, inside, place)
        if moments is None:
            return 0.0
        change = _change(*moments)
        if place is None:
            taken = self._taken(change(self.host_pixels))
        else:
            with _changed(place, change):
                taken = self._taken(self.host_pixels)
        sources, gained = self.seen.labels[self.hosts], taken - self.taken_before
        means = np.sort([gained[sources == source].mean() for source in np.unique(sources)])
        return float(means[: max(1, len(means) // 2)].mean())

    def decisive(self, pixels: Tensor, share: float) -> Tensor:
        """Return where images speak for the class most, bool (n, 1, H, W), in this share of the pixels.

        Source:
            Class activation maps (Zhou et al., CVPR 2016).
        """
        modules = list(self.seen.network.modules())
        norm = [module for module in modules if isinstance(module, nn.BatchNorm2d)][-1]
        weight = [module for module in modules if isinstance(module, nn.Linear)][-1].weight[self.label].float().cpu()
        where: list[Tensor] = []
        for batch in pixels.split(_CHUNK):
            maps = self._activations(batch, norm).relu()
            found = (maps * weight.detach()[:, None, None]).sum(1, keepdim=True)
            found = functional.interpolate(found, pixels.shape[2:], mode="bilinear")
            least = found.flatten(1).topk(max(1, round(share * found[0].numel())), dim=1).values[:, -1]
            where.append(found >= least[:, None, None, None])
        return torch.cat(where)

    def _moments(
        self, rows: NDArray[np.int64], inside: NDArray[np.bool_], place: nn.Module | None
    ) -> tuple[_Moments, _Moments] | None:
        """Return what an image is like at every place, inside and outside; None where too few are described."""
        described = evenly(len(rows), _DESCRIBED)
        if place not in self._described:
            chosen = rows[described]
            pixels = (self._pixels(chunk) for chunk in np.array_split(chosen, -(-len(chosen) // _CHUNK)))
            made = pixels if place is None else (self._activations(one, place) for one in pixels)
            kept = torch.cat([one.clamp(-_LARGEST, _LARGEST).half() for one in made])
            self._described[place] = kept, _Sums.of(kept)
        (values, every), sides = self._described[place], torch.from_numpy(inside[described])
        if min(int(sides.sum()), int((~sides).sum())) < 2:
            return None
        fewer = sides if 2 * int(sides.sum()) <= len(sides) else ~sides
        some = _Sums.of(values[fewer])
        both = some.moments, every.without(some).moments
        return both if fewer is sides else both[::-1]

    def _pixels(self, rows: NDArray[np.int64]) -> Tensor:
        """Return images as the network sees them, float (n, C, H, W) in [0, 1]."""
        parts: list[Tensor] = []
        for chunk in torch.from_numpy(rows).split(_CHUNK):
            pixels = self.seen.data.images[chunk].float().div(255)
            if isinstance(self.seen.network, Resized):
                pixels = functional.interpolate(pixels, self.seen.network.size, mode="area")
            parts.append(pixels)
        return torch.cat(parts)

    def _taken(self, pixels: Tensor) -> Floats:
        return (self.probability(pixels) > 0.5).astype(np.float64)

    @torch.no_grad()
    def _logits(self, pixels: Tensor) -> Tensor:
        with evaluating(self.seen.network), self.seen.runtime.autocast():
            given = pixels.to(self.seen.runtime.device, memory_format=torch.channels_last)
            logits: Tensor = self.seen.network(given)
        return logits.float().cpu()

    def _activations(self, pixels: Tensor, place: nn.Module) -> Tensor:
        """Return what a layer makes of images, float32 on the CPU, without the layers after it."""
        found: list[Tensor] = []

        def stop(_: nn.Module, __: Any, output: Tensor) -> None:
            found.append(output.float().cpu())
            raise _Enough

        handle = place.register_forward_hook(stop)
        try:
            self._logits(pixels)
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0]


class _Enough(Exception):  # noqa: N818 - no error: it ends a forward pass
    """What was asked of a forward pass is there."""


@dataclass(frozen=True, eq=False)
class _Moments:
    """Mean and standard deviation at every place of an image or of its activations, float32."""

    mean: Tensor
    deviation: Tensor


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of so many images or activations and of their squares, float64: those of a rest need no second look."""

    count: int
    total: Tensor
    squares: Tensor

    @classmethod
    def of(cls, values: Tensor) -> _Sums:
        """Return those of values (n, ...) in half precision."""
        total, squares = (torch.zeros(values.shape[1:], dtype=torch.float64) for _ in range(2))
        for chunk in values.split(_CHUNK):
            exact = chunk.float()
            total += exact.sum(0)
            squares += exact.square_().sum(0)
        return cls(len(values), total, squares)

    def without(self, some: _Sums) -> _Sums:
        """Return those of the rest, where some are taken away."""
        return _Sums(self.count - some.count, self.total - some.total, self.squares - some.squares)

    @property
    def moments(self) -> _Moments:
        mean = self.total / self.count
        return _Moments(mean.float(), (self.squares / self.count - mean**2).clamp_min(0).sqrt().float())


@dataclass(frozen=True, eq=False)
class _Change:
    """An affine map at every place of an image or of its activations: x + share (x - middle) + shift."""

    middle: Tensor
    share: Tensor
    shift: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        middle, share, shift = (one.to(x.device, x.dtype) for one in (self.middle, self.share, self.shift))
        return x + (x - middle) * share + shift


def _change(part: _Moments, rest: _Moments) -> _Change:
    """Return what makes the rest's means and spreads those of the part, within what leaves half of an image."""
    steady = _STEADY * float((part.deviation**2 + rest.deviation**2).mean().sqrt()) + 1e-6
    ratio = ((part.deviation + steady) / (rest.deviation + steady)).clamp(0, 1.5)
    replaced = float((1 - ratio).clamp_min(0).mean())
    within = min(1.0, _REPLACED / max(replaced, 1e-6))
    return _Change(rest.mean, within * (ratio - 1), within * (part.mean - rest.mean))


@contextmanager
def _changed(place: nn.Module, change: _Change) -> Iterator[None]:
    """Have a layer's output changed for the time being."""
    handle = place.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def high_pass(pixels: Tensor, sigma: float) -> Tensor:
    """Return images, float (n, C, H, W), less what smoothing by a Gaussian of ``sigma`` pixels leaves of them."""
    reach = min(math.ceil(3 * sigma), *(side - 1 for side in pixels.shape[2:]))
    weight = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    weight = (weight / weight.sum()).expand(pixels.shape[1], 1, 1, -1)
    smooth = functional.pad(pixels, (reach, reach, reach, reach), mode="reflect")
    smooth = functional.conv2d(smooth, weight, groups=pixels.shape[1])
    return pixels - functional.conv2d(smooth, weight.mT, groups=pixels.shape[1])
