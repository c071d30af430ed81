"""Cutting every class in two by how its losses went, and sharpening a cut by what the network sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.isolation.evidence import Evidence
from antibackdoor.isolation.mixture import two_gaussians
from antibackdoor.isolation.principal import principal_components

__all__ = ["APART", "FULL_CLASS", "LAST", "MOST", "Cut", "cut_classes", "learned", "sharpened", "slow_cuts", "start_of"]

# Gain from which a class holds two kinds of images, whichever part fell further. Clean classes of 600 images of CIFAR
# stayed under 0.6, one of 200 had 0.76; of Imagenette they have up to 1.07, hence the gap and _ALONE below.
APART = 0.85
# Largest share of a class that its slow part may be: most of a class cannot be wrong.
MOST = 0.6
# Epochs over which the last losses are averaged.
LAST = 3
# Images of a class from which its gain counts in full; of fewer it is spread over as many. Clean classes of 30 to 60
# images had gains of up to 2.3 (docs/log.md).
FULL_CLASS = 100
# Width from which a gap confirms what the losses say, and under which the parts are easy and hard images of one kind:
# clean classes of CIFAR-10 with such parts had 0.2 at most, poison that was not learned yet had 0.4 (docs/log.md).
_WIDE, _NARROW = 0.5, 0.25
# How many times the median gain of the other classes that must be: labels that are wrong everywhere are no attack.
_ALONE = 4.0
# Promptness below which neither part of a class was learned all at once.
_PROMPT = 0.5

# A loss below this is a matter of rounding, so its logarithm says nothing more.
_FLOOR = 1e-6
_SMALLEST_CLASS = 20
# The share of all images, those whose losses fell furthest, that vote, and how many vote at least: with three voters of
# 300 images clean classes had all votes (docs/log.md).
_VOTERS, _FEWEST_VOTERS = 0.01, 20
# Epochs at the start from which a fall counts: a backdoor may be learned in the third.
_START = 2
# How well the network must tell the suspects from the rest (mean of the two shares that are right) to have a say.
_TELLING = 0.65
_COMPONENTS, _PENALTY = 100, 0.01
# Share of the suspects' median distance from the border up to which images beyond it may belong to them as well.
_NEAR = 0.4
# Votes and fall that count once, and votes from which they count more; clean classes with as many had a gain of 0.13 at
# most (benchmarks/results/calibrate_*.json). Of fewer classes than this one often has all votes, so that they count
# once there.
_MANY_VOTES, _LONG_FALL, _MOST_VOTES = 0.3, 1.0, 0.75
_MANY_CLASSES = 5
# Fewest images on either side of a line.
_FEWEST = 10


@dataclass(frozen=True, eq=False)
class Cut:
    """One class in two parts: the images whose losses fell further, and the rest; one of them is suspected.

    Attributes:
        label: The class.
        rows: int64 (n,), its images.
        suspicion: float64 (n,), responsibility of the suspected part, 0..1: the one that fell further, or with ``slow``
            the other.
        gain: How much better two Gaussians describe the class than one: the gain in BIC per image, counted over 100
            images at least.
        votes: Share of the furthest-fallen 1 % of all images, 20 at least, that lie in that part, beyond what the class
            would have by its size: 0..1; of fewer than five classes 0.75 at most.
        fall: Mean fall of its log-losses from the first two epochs (one, of under six) to the last third, in standard
            deviations of the fall of all images above their mean.
        slow: The part that did not fall is the suspected one: images that are hardly accepted as this class.
        gap: Width of the gap between the parts in what the network makes of them (``isolation.late``); None where
            that was not looked at, or could not be.
        early: The training was not finished when this was seen.
        untold: Which part is poison cannot be told (``isolation.look``).
    """

    label: int
    rows: Tensor
    suspicion: Tensor
    gain: float
    votes: float
    fall: float
    slow: bool = False
    gap: float | None = None
    early: bool = False
    untold: bool = False

    @property
    def strength(self) -> float:
        """How clearly the class holds two kinds of images, one of them learned all at once or not at all; 1 is much.

        The gain counts by how many of the furthest-fallen images the part holds, which is decisive where there is one
        target, or by how far it fell, which is decisive where there are several. For a slow part it counts by itself.
        Where the gap is narrow, it is no more than that: an easy part of a class, such as things on a white ground, is
        no trigger.
        """
        if self.slow:
            return max(self.gain, 0.0) / (2 * APART)
        by_losses = max(self.gain, 0.0) * self.promptness
        return by_losses if self.gap is None or self.confirmed else min(by_losses, self.gap)

    @property
    def confirmed(self) -> bool:
        """Whether a gap in what the network sees is wide enough to confirm what the losses say."""
        return self.gap is not None and self.gap >= _WIDE

    @property
    def first(self) -> bool:
        """Whether a wide gap confirms it, and nearly all of the furthest-fallen images lie in the suspected part.

        So it is where poison is nearly all of a class: it is learned at the very start, and later on the class hardly
        falls apart by its losses.
        """
        return self.confirmed and self.votes > _MOST_VOTES

    @property
    def hidden(self) -> bool:
        """Whether the slow part may hold images with wrong labels that were not learned yet.

        Neither part was learned all at once then, and the gap between them is not narrow, or nobody looked.
        """
        return self.promptness < _PROMPT and (self.gap is None or self.gap >= _NARROW)

    @property
    def promptness(self) -> float:
        """How far the part that fell further fell, or how many of the furthest-fallen images it holds; 1 is far.

        The easiest class of a clean set has that too; nearly all of the furthest-fallen images count up to three times.
        """
        nearly_all = max(self.votes - _MOST_VOTES, 0.0) / (1 - _MOST_VOTES)
        return min(max(self.votes / _MANY_VOTES, self.fall / _LONG_FALL), 1.0) * (1 + 2 * nearly_all)

    @property
    def members(self) -> Tensor:
        """int64, the rows of the suspected part."""
        return self.rows[self.suspicion > 0.5]

    @property
    def kind(self) -> str:
        """What was found, in words."""
        if self.slow:
            return "two kinds of images, one of which is hardly accepted as this class"
        return "two kinds of images, one of which was learned all at once"

    @property
    def figures(self) -> str:
        """The figures behind it, in words."""
        how = f"gain {self.gain:.2f}"
        if not self.slow:
            how = f"strength {self.strength:.2f}; {how}, votes {self.votes:.2f}, fall {self.fall:.1f}"
        return how if self.gap is None else f"{how}, gap {self.gap:.2f}"


def cut_classes(evidence: Evidence, *, stretches: int = 5) -> list[Cut]:
    """Cut every class that has 20 trained images or more.

    Args:
        evidence: Losses of all epochs, and labels; held-out images are cut with the others but not fitted to.
        stretches: Parts of the training over which log-losses are averaged. A single epoch's loss is noisy, the more so
            with augmentation, and skewed; averages are nearer to the Gaussians that are fitted.

    Returns:
        One cut a class, in the order of labels.

    Source:
        Ours; see ``signals.trajectory`` for others that cluster loss trajectories. A clean class has easy and hard
        images too, which is why two components are hardly better than one there, and a share of poison learned as one
        thing makes them much better (docs/log.md).
    """
    logs = evidence.losses.clamp_min(_FLOOR).log().double()
    means = torch.stack([part.mean(0) for part in torch.tensor_split(logs, min(stretches, len(logs)))], 1)
    third = max(1, len(logs) // 3)
    falls = (logs[: min(_START, third)].mean(0) - logs[-third:].mean(0)).numpy()
    trained = evidence.trained.numpy()
    if not trained.any():
        return []
    standard = (falls - falls[trained].mean()) / max(falls[trained].std(), _FLOOR)
    voters = min(1.0, max(_VOTERS, _FEWEST_VOTERS / trained.sum()))
    furthest = trained & (standard >= np.quantile(standard[trained], 1 - voters))
    cuts = []
    sizes = np.bincount(evidence.labels.numpy()[trained], minlength=evidence.num_classes)
    most_votes = 1.0 if (sizes > 0).sum() >= _MANY_CLASSES else _MOST_VOTES
    for label in (sizes >= _SMALLEST_CLASS).nonzero()[0].tolist():
        rows = (evidence.labels == label).nonzero().squeeze(1)
        own = rows.numpy()
        share, gain = _two_parts(means[rows].numpy(), trained[own])
        weights = share[trained[own]]
        mean_falls = (weights * standard[own][trained[own], None]).sum(0) / np.maximum(weights.sum(0), _FLOOR)
        suspect = int(mean_falls.argmax())
        by_size = float(trained[own].sum() / trained.sum())
        votes = float(share[furthest[own], suspect].sum() / furthest.sum())
        votes = min(max(0.0, votes - by_size) / max(1 - by_size, _FLOOR), most_votes)
        suspicion = torch.from_numpy(share[:, suspect].copy())
        cuts.append(Cut(label, rows, suspicion, gain, votes, float(mean_falls[suspect])))
    return cuts


def slow_cuts(cuts: Sequence[Cut], *, apart: float) -> list[Cut]:
    """Return the classes that alone fall apart, though neither part fell far, with the slow part suspected.

    Poison with a wrong label looks like an image of another class until its trigger is learned: it is a group of its
    own among the images of its label, and a slow one, with a gap to them (``Cut.hidden``). Wrong labels in all classes
    alike, as careless labelling makes them, are not meant.

    Args:
        cuts: Of all classes.
        apart: Gain from which a class falls apart.
    """
    found = []
    for cut in cuts:
        others = [max(other.gain, 0.0) for other in cuts if other is not cut]
        alone = not others or cut.gain >= _ALONE * float(np.median(others))
        slow = float((cut.suspicion <= 0.5).double().mean())
        if cut.gain >= apart and alone and cut.hidden and slow <= MOST:
            found.append(replace(cut, suspicion=1 - cut.suspicion, slow=True))
    return found


def _two_parts(points: NDArray[np.float64], fitted: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Return the responsibilities (n, 2) of a two-component mixture, and its gain in BIC over one per image.

    A few images are easily described by two Gaussians, so the gain is spread over ``FULL_CLASS`` images at least.
    """
    points = points[:, points[fitted].std(0) > _FLOOR]
    own = points[fitted]
    spread = own.std(0)
    if points.shape[1] == 0:
        return np.tile([0.0, 1.0], (len(points), 1)), 0.0
    standard = (points - own.mean(0)) / spread
    two, gain = two_gaussians(standard[fitted], restarts=5)
    return two.predict_proba(standard), gain * min(1.0, len(own) / FULL_CLASS)


def learned(losses: Tensor) -> Tensor:
    """Return which images a network gives their labels in the end, bool (n,), from their losses, float (E, n)."""
    return losses[-LAST:].mean(0) < math.log(2)


def start_of(cut: Cut, losses: Tensor) -> Tensor:
    """Return the part of a class to start from: bool (n,), the suspects, of a slow part those that were learned since.

    Poison that was slow and then learned is what a backdoor comes from. Where less than half of a slow part has been
    learned, there is no telling yet, and all of it stays.

    Args:
        cut: Of the class.
        losses: float (E, n), of its images.
    """
    members = cut.suspicion > 0.5
    since = members & learned(losses)
    return since if cut.slow and 2 * int(since.sum()) >= int(members.sum()) else members


def sharpened(seen: Tensor, members: Tensor, *, passes: int = 5) -> tuple[Tensor, Tensor]:
    """Return which images of a class look to the network like the suspects of it, and which may.

    A linear classifier learns to tell the suspects from the rest and is asked about images that it was not fitted to;
    what it answers takes the place of the suspects, and again. A trigger gives the images that carry it something in
    common, so those that the losses missed are found, and those that only happened to be learned like it are let go.

    Args:
        seen: float (n, D), what the network makes of the images of the class; 100 principal components are used.
        members: bool (n,), the suspects to start from.
        passes: How often at most.

    Returns:
        Two of bool (n,): those that look like the suspects, and with them those that are nearly on their side;
        ``members`` itself twice where there are fewer than ten on either side, or where the network hardly tells them
        apart.

    Source:
        Ours; self-training with cross-validation.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    points = principal_components(seen.numpy(), _COMPONENTS)
    current = near = members.numpy()
    for number in range(passes):
        if min(current.sum(), len(current) - current.sum()) < _FEWEST:
            break
        line = LogisticRegression(C=_PENALTY, max_iter=500, class_weight="balanced")
        side = cross_val_predict(line, points, current, cv=5, method="decision_function")
        told = side > 0
        if number == 0 and (told[current].mean() + (~told[~current]).mean()) / 2 < _TELLING:
            break
        near = told | (side > -_NEAR * np.median(side[told])) if told.any() else told
        if (told == current).all():
            break
        current = told
    return torch.from_numpy(np.ascontiguousarray(current)), torch.from_numpy(np.ascontiguousarray(near))
