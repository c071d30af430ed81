"""Cutting every class in two by what excites the network's channels: a trigger that can be seen splits its class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from antibackdoor.errors import ConfigError
from antibackdoor.isolation.cuts import MOST
from antibackdoor.isolation.mixture import two_gaussians
from antibackdoor.isolation.network import Measure, Network
from antibackdoor.isolation.others import images_of_others
from antibackdoor.isolation.principal import principal_components
from antibackdoor.isolation.signals.features import used, watched

__all__ = ["SMALLEST_CLASS", "SMALLEST_PART", "ChannelCut", "channel_maxima", "cut_by_channels"]

# Channels of a convolution that are looked at, the first ones; a ResNet-18 has 4,800 in all.
_CHANNELS = 64
_COMPONENTS = 5
# In smaller classes a few images that are nearly the same, frames of one scene, lie as far apart as a trigger would.
SMALLEST_CLASS, SMALLEST_PART = 100, 20
_FLOOR = 1e-6
# A distance between the parts, in standard deviations, that counts once; parts of clean classes are 2.5 to 5.3 apart.
_FAR = 8.0
# What other classes may have of a part that is most of its class: where they have more, it is what the class shows, and
# the rest may be poison that shows other classes. Clean-label poison in 80 % of a class had 0.00.
_SHARED = 0.1


@dataclass(frozen=True, eq=False)
class ChannelCut:
    """One class in two parts: images that excite the network as those of no other class do, and the rest.

    Attributes:
        label: The class.
        rows: int64 (n,), its images.
        suspicion: float64 (n,), responsibility of the part that other classes have least of, 0..1.
        gain: How much better two Gaussians describe the class than one: the gain in BIC per image.
        apart: Distance of the parts along the line that tells them apart best, in standard deviations; 0 where one has
            fewer than 20 images.
        common: Share of the images of other classes that would lie in that part, over the part's share of the class, at
            most 1. What splits all classes alike, such as day and night, is no trigger. 1 where the part is most of the
            class and other classes have a tenth of that.
        early: The training was not finished when this was seen.
        untold: Which part is poison cannot be told (``isolation.look``).
    """

    label: int
    rows: Tensor
    suspicion: Tensor
    gain: float
    apart: float
    common: float
    early: bool = False
    untold: bool = False

    # Which part is suspected does not follow from how slowly it was learned; only a ``Cut`` knows slow parts.
    slow: ClassVar[bool] = False

    @property
    def strength(self) -> float:
        """How clearly the class holds two kinds of images, one of them foreign to all classes; 1 is much."""
        return max(self.gain, 0.0) * (self.apart / _FAR * (1 - self.common)) ** 3

    @property
    def kind(self) -> str:
        """What was found, in words."""
        return "two kinds of images, one of which excites the network as no other class does"

    @property
    def figures(self) -> str:
        """The figures behind it, in words."""
        return (
            f"strength {self.strength:.2f}; gain {self.gain:.2f}, {self.apart:.1f} deviations apart, in other classes "
            f"{self.common:.2f}"
        )


def channel_maxima(network: Network) -> Measure:
    """Return the measure of the largest output of the first 64 channels of every convolution, (B, channels).

    Raises:
        ConfigError: The network has no convolution.
    """
    known: list[nn.Module] = [module for module in network.model.modules() if isinstance(module, _ConvNd)]
    ran = used(network, known, lambda inputs: True)
    convolutions = [module for module in known if module in ran]
    if not convolutions:
        raise ConfigError("isolation: a cut by channels needs a network with convolutions")
    return watched(network, convolutions, lambda _, __, output: output[:, :_CHANNELS].flatten(2).amax(2))


def cut_by_channels(maxima: Tensor, labels: Tensor, num_classes: int, fitted: Tensor | None = None) -> list[ChannelCut]:
    """Cut every class that has 100 images to fit to.

    A class is described by five principal components of its channels' maxima. A trigger that can be seen excites the
    first layers in its own way, whether the network has learned it or not, so the images that carry it lie together and
    far from the rest of the class; images of other classes lie with the rest.

    Args:
        maxima: float (N, channels), of :func:`channel_maxima`.
        labels: int64 (N,).
        num_classes: K.
        fitted: bool (N,), images to fit to; all by default.

    Returns:
        One cut a class, in the order of labels.

    Source:
        Ours. Channel maxima are PIPD's (AAAI 2024), clusters inside a class Activation Clustering's (2018); new is the
        question whether other classes have images in the part too (docs/log.md).
    """
    known = np.ones(len(labels), dtype=bool) if fitted is None else fitted.numpy()
    values, classes = maxima.numpy(), labels.numpy()
    cuts = []
    for label in range(num_classes):
        of_class = classes == label
        if (of_class & known).sum() < SMALLEST_CLASS:
            continue
        # The class, and what it is compared with.
        looked = of_class | images_of_others(of_class, known)
        own, inner = of_class[looked], (of_class & known)[looked]
        points = principal_components(values[looked], _COMPONENTS, inner)
        points = points / np.maximum(points[inner].std(0), _FLOOR)
        two, gain = two_gaussians(points[inner], restarts=3)
        shares = two.predict_proba(points)
        here, elsewhere = shares[inner].mean(0), (shares[~own] > 0.5).mean(0) if (~own).any() else 1.0
        ratio = np.minimum(elsewhere / np.maximum(here, _FLOOR), 1.0)
        part = int(ratio.argmin())
        rows = torch.from_numpy(np.flatnonzero(of_class))
        suspicion = torch.from_numpy(shares[own][:, part].copy())
        apart = _apart(points[inner], shares[inner][:, part] > 0.5)
        common = 1.0 if here[part] > MOST and ratio[part] > _SHARED else float(ratio[part])
        cuts.append(ChannelCut(label, rows, suspicion, gain, apart, common))
    return cuts


def _apart(points: NDArray[np.float64], inside: NDArray[np.bool_]) -> float:
    """Return the distance of two groups along their discriminant, in pooled standard deviations; 0 if one is small."""
    if min(inside.sum(), (~inside).sum()) < SMALLEST_PART:
        return 0.0
    one, other = points[inside], points[~inside]
    within = (np.cov(one.T) + np.cov(other.T)).reshape(points.shape[1], -1) / 2
    line = np.linalg.solve(within + 1e-3 * np.eye(len(within)), one.mean(0) - other.mean(0))
    first, second = one @ line, other @ line
    return float((first.mean() - second.mean()) / max(np.sqrt((first.var() + second.var()) / 2), _FLOOR))
