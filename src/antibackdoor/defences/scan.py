"""SCAn: classes that are two groups of images where clean classes are one; the strange group is removed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.defences.base import FilterDefence, TrustedDefence
from antibackdoor.defences.encoding import own_features
from antibackdoor.defences.outlying_classes import SMALLEST_CLASS, isolation_of
from antibackdoor.errors import ConfigError
from antibackdoor.isolation.untangle import (
    Split,
    identity_of,
    outlyingness,
    split_in_two,
    untangled,
    variation,
    whitening,
)
from antibackdoor.models import BuildModel
from antibackdoor.seeds import Seeds
from antibackdoor.training import Fit, Phase, TrainPlan
from antibackdoor.types import ImageSet, Isolation, Outcome

__all__ = ["Scan", "Untangling", "untangle_classes"]


@dataclass(frozen=True, eq=False)
class Untangling:
    """What untangling every class came to.

    Attributes:
        statistic: float64 (K,), J of every class, NaN where a class is too small.
        outlying: float64 (K,), how far J lies above the median of the classes, in deviations; 0 where there is no J.
        margins: float64 (N,), how far an image lies on the side of the group with fewer trusted images, in standard
            deviations within a class; 0 where there is no J.
    """

    statistic: NDArray[np.float64]
    outlying: NDArray[np.float64]
    margins: NDArray[np.float64]


def untangle_classes(
    observed: NDArray[np.float64],
    labels: NDArray[np.int64],
    trained: NDArray[np.bool_],
    trusted: tuple[NDArray[np.float64], NDArray[np.int64]],
    *,
    num_classes: int,
    shrink: bool,
    starts: int,
    draw: np.random.Generator,
) -> Untangling:
    """Split every class in two, and compare what that gains over the classes.

    Args:
        observed: (N, D), features of the observed images.
        labels: (N,), as observed.
        trained: (N,), whom groups are fitted to, beside the trusted images; the others are only judged.
        trusted: Features (M, D) and labels (M,) of the trusted images.
        num_classes: K.
        shrink: As of :func:`antibackdoor.isolation.untangle.variation`.
        starts: Random starts of each class.
        draw: Draws them.
    """
    known, known_labels = trusted
    found = variation(known, known_labels, shrink=shrink)
    axes = whitening(found.within)
    centre = np.concatenate([observed[trained], known]).mean(0)
    statistic = np.full(num_classes, np.nan)
    margins = np.zeros(len(observed))
    for label in range(num_classes):
        fitted = observed[trained & (labels == label)]
        mine = known[known_labels == label]
        if len(fitted) < SMALLEST_CLASS:
            continue
        features = np.concatenate([fitted, mine]) - centre
        points = features @ axes
        split = split_in_two(points, starts=starts, draw=draw)
        statistic[label] = untangled(points, identity_of(found, features) @ axes, split)
        rows = labels == label
        margins[rows] = _strange_side(split, len(mine)) * split.margins((observed[rows] - centre) @ axes)
    there = ~np.isnan(statistic)
    outlying = np.zeros(num_classes)
    outlying[there] = outlyingness(statistic[there]) if there.any() else 0.0
    return Untangling(statistic, outlying, margins)


@dataclass(frozen=True)
class Scan(FilterDefence, TrustedDefence):
    """Remove the group of images that is strange in classes that are two groups, given trusted images; train anew.

    A network is trained by the plan, as if there were no poison. A penultimate feature is taken to be the identity of
    its class plus a variation that all classes share; both covariances are estimated from trusted images. With them
    each class, its trusted images included, is split in two, and J is the gain in likelihood over one group, per image.
    A class whose J lies ``threshold`` median deviations and more above the median of the classes is contaminated; of
    its two groups the one that holds fewer of the trusted images is flagged, and a new network is trained by the same
    plan on the rest. Scores are 0.5 to 1 for what is flagged, 0 to 0.5 for the rest of its class, and 1 less in other
    classes. Classes under 20 images are left out of it. With few classes the median says little, and where most are
    poisoned, as by all-to-all attacks, it hides them.

    Differences from the paper and the released code: the covariance within classes is shrunk, without which it is
    singular where there are fewer trusted images than features (``shrink`` false leaves that out); splits are started
    several times, and the best counts; only what lies above the median is an outlier, where the code also takes classes
    that are unusually tight; trusted images are those of the run, where the code takes test images.

    Attributes:
        threshold: Median deviations above the median, above 0; the paper's e^2.
        starts: Random splits to begin with, at least 1; the code's 1.
        shrink: Shrink the covariance within classes by Ledoit and Wolf's rule.

    Source:
        Tang et al., Demon in the Variant, USENIX Security 2021; github.com/TDteach/Demon-in-the-Variant.
    """

    threshold: float = math.exp(2)
    starts: int = 10
    shrink: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.threshold) and self.threshold > 0):
            raise ConfigError(f"threshold: must be a finite number above 0, got {self.threshold}")
        if self.starts < 1:
            raise ConfigError(f"starts: must be at least 1, got {self.starts}")

    def scan(self, data: ImageSet, *, build_model: BuildModel, fit: Fit, plan: TrainPlan, seeds: Seeds) -> Outcome:
        """Train by the plan, untangle and flag."""
        trusted = self._handed_over()
        model = build_model(seeds.generator("init"))
        history = fit(model, data, Phase("train", plan))
        found = untangle_classes(
            own_features(model, data, fit.runtime).astype(np.float64),
            data.labels.numpy(),
            history.trained,
            (own_features(model, trusted, fit.runtime).astype(np.float64), trusted.labels.numpy()),
            num_classes=data.num_classes,
            shrink=self.shrink,
            starts=self.starts,
            draw=np.random.default_rng(seeds.derive("untangle")),
        )
        found = fit.runtime.first(found)  # All processes must leave out the same images.
        scores, flagged = self.flag(found, data.labels)
        return Outcome(model, self._isolation(found, scores, flagged, data), (history,))

    def flag(self, found: Untangling, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores, float32 (N,) in -1..1, and who is flagged, bool (N,).

        Args:
            found: What untangling came to.
            labels: int64 (N,), as observed.
        """
        contaminated = torch.from_numpy(found.outlying > self.threshold)[labels]
        margins = torch.from_numpy(found.margins)
        side = (1 + margins / (1 + margins.abs())) / 2  # 0..1 without an end at which all are equal
        return torch.where(contaminated, side, side - 1).float(), contaminated & (margins > 0)

    def _isolation(self, found: Untangling, scores: Tensor, flagged: Tensor, data: ImageSet) -> Isolation:
        judged = int((~np.isnan(found.statistic)).sum())
        evidence = [
            f"{data.classes[label]}: J is {found.statistic[label]:.3g}, {found.outlying[label]:.3g} deviations above "
            f"the median of the classes, and {int(flagged[data.labels == label].sum())} of its "
            f"{int((data.labels == label).sum())} images are the strange group."
            for label in np.flatnonzero(found.outlying > self.threshold).tolist()
        ]
        if not evidence:
            evidence.append(
                f"No class is two groups: the largest J lies {float(found.outlying.max()):.3g} deviations above the "
                f"median of {judged} classes, and {self.threshold:.3g} would count."
            )
        return isolation_of(scores, flagged, evidence, judged=judged, classes=data.num_classes)


def _strange_side(split: Split, trusted: int) -> int:
    """Return 1 where the second group is the strange one, else -1; the last ``trusted`` of the class are trusted."""
    inside = int(split.second[len(split.second) - trusted :].sum())
    if 2 * inside != trusted:
        return 1 if 2 * inside < trusted else -1
    return 1 if 2 * int(split.second.sum()) < len(split.second) else -1
