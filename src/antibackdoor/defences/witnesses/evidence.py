"""Evidence on a part of a class: small functions of one signature, each a statistic that is large where it is poison.

``STATISTICS`` is the table: ``(Scene, Part) -> float``. What each gives on clean trainings is its null, in
``calibration``; a statistic is worth nothing without one. ``QUESTIONS`` says which of them ask the same thing in
different ways; of these the surest counts. To add one, write a function, give it a line in both and print its null with
``benchmarks/bank/replay.py --null``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.defences.witnesses.parts import Part, shared_picture
from antibackdoor.defences.witnesses.scene import Scene, high_pass

__all__ = [
    "AT_A_LOOK",
    "QUESTIONS",
    "STATISTICS",
    "Statistic",
    "activation",
    "ahead",
    "detail",
    "diversity",
    "early",
    "entropy",
    "misplaced",
    "mixing",
    "pasting",
    "picture",
    "style",
    "turning",
]

# Pixels that fine detail is smoothed away by; share of an image that decides.
_FINE, _DECISIVE = (0.7, 2.0), 0.3

Statistic: TypeAlias = Callable[[Scene, Part], float]


def turning(scene: Scene, part: Part) -> float:
    """Return how far what the part has, and the rest of its class has not, turns images of other classes into it.

    Means and spreads of the part, at every place, are put on images of other classes (``Scene.turned``): a patch
    replaces what is there, a blended picture weakens it and adds its own, a cast scales it. That is done once on pixels
    and once on what the network's first convolution makes of them, and averaged.

    Source:
        Ours. The question is that of trigger inversion (Neural Cleanse, S&P 2019), answered without optimising.
    """
    rows, inside = part.views.rows, part.members
    return (scene.turned(rows, inside, None) + scene.turned(rows, inside, scene.convolutions[0])) / 2


def activation(scene: Scene, part: Part) -> float:
    """Return the same as ``turning`` for what convolutions a third and two thirds of the way make of the images.

    There textures have a place, which they have not in pixels, and what is typical of a clean class turns nearly
    nothing.

    Source:
        Ours.
    """
    rows, inside = part.views.rows, part.members
    return sum(scene.turned(rows, inside, place) for place in scene.convolutions[1:]) / 2


def mixing(scene: Scene, part: Part) -> float:
    """Return how much more firmly images of the part keep their class than the rest when mixed with foreign ones.

    Every image is averaged with one of another class; the statistic is the mean probability of its own label in the
    part, less that in the rest. A trigger, wherever it is in the image, outweighs the other picture.

    Source:
        STRIP (ACSAC 2019) asks for the entropy of such mixtures; here parts of one class are compared.
    """
    return _outweighs(scene, part, lambda donors, hosts: (donors + hosts) / 2)


def pasting(scene: Scene, part: Part) -> float:
    """Return how much more what decides in images of the part turns images of other classes than in the rest.

    The 30 % of an image that speak for its class most are pasted on an image of another class, where they are.

    Source:
        SentiNet (IEEE S&P workshops 2020), which looks for such regions in images at test time.
    """

    def paste(donors: Tensor, hosts: Tensor) -> Tensor:
        decisive = scene.decisive(donors, _DECISIVE)
        return decisive * donors + ~decisive * hosts

    return _outweighs(scene, part, paste)


def detail(scene: Scene, part: Part) -> float:
    """Return how much more the fine detail of the part turns images of other classes than that of the rest.

    What smoothing takes away from an image replaces what it takes away from an image of another class; once with .7 and
    once with 2 pixels.

    Source:
        Ours; that triggers are seen in high frequencies is known since Zeng et al. (ICCV 2021).
    """

    def exchange(sigma: float) -> float:
        return _outweighs(scene, part, lambda donors, hosts: hosts - high_pass(hosts, sigma) + high_pass(donors, sigma))

    return float(np.mean([exchange(sigma) for sigma in _FINE]))


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
    learned = float(scene.learned(views.rows[inside]).mean())
    return learned * float(np.log(max(spread[0], 1e-9) / max(spread[1], 1e-9)))


def misplaced(scene: Scene, part: Part) -> float:
    """Return the share of the part that surely shows other classes though it is learned, by how these are spread.

    A classifier of the encoder's features that was fitted without the part says what each of its images shows, and how
    surely. The share that shows another class and is learned all the same is multiplied by

    * the entropy of these classes, as a share of the largest that there could be: an odd kind of a clean class looks
      like one other class, not like all of them;
    * the classifier's mean probability of what it sees: images of another class show it plainly;
    * one half and half of the share that is not returned, which is by how much these images outnumber the learned ones
      of other classes that show this class: carelessness mislabels both ways.

    Source:
        Ours; that mislabelled neighbours tell poison is the idea of Deep k-NN (Peri et al., ECCV workshops 2020).
    """
    rows = part.views.rows[part.members]
    shown, sure = scene.features.seen_without(rows)
    wrong = (shown != scene.label) & scene.learned(rows)
    if not wrong.any():
        return 0.0
    others = len(np.unique(scene.seen.labels)) - 1
    spread = entropy(shown[wrong]) / float(np.log(max(2, others)))
    kept = max(0.0, 1 - scene.returned / float(wrong.sum()))
    return spread * float(wrong.mean() * sure.mean()) * (1 + kept) / 2


def early(scene: Scene, part: Part) -> float:
    """Return how much sooner what looks foreign in the part was learned than what looks as foreign elsewhere.

    An odd image of a clean class, or a mislabelled one, is learned late; with a trigger it is learned early, whatever
    it shows. In deviations (``Scene.lead``), weighted by the share of the part in which the encoder sees another class.

    Source:
        That backdoored images are learned first is what Anti-Backdoor Learning rests on (NeurIPS 2021); the comparison
        with images that look as foreign is ours.
    """
    rows = part.views.rows[part.members]
    return float((scene.lead[rows] * (scene.features.foreign[rows] > 0)).mean())


def ahead(scene: Scene, part: Part) -> float:
    """Return how much sooner the part was learned than the rest of its class, given how foreign both look.

    Source:
        As ``early``; it sees poison that carries the label of what it shows, too.
    """
    lead = scene.lead[part.views.rows]
    return float(lead[part.members].mean() - lead[~part.members].mean())


def picture(scene: Scene, part: Part) -> float:
    """Return how far the part stands off the rest by the picture that it shares, in standard deviations of both.

    Natural images differ gradually in whatever they share; a picture is there or not.

    Source:
        Ours: the discriminability d' of a matched filter (Green and Swets, 1966).
    """
    return _stands_off(part.views.pictures, part)


def style(scene: Scene, part: Part) -> float:
    """Return how far the part stands off the rest by how its images are made, in standard deviations of both.

    It sees what has no place in the image: filters, noise, fewer levels, warping (``style.styles_of``).

    Source:
        As ``picture``.
    """
    return _stands_off(part.views.styles, part)


STATISTICS: dict[str, Statistic] = {
    "turning": turning,
    "activation": activation,
    "mixing": mixing,
    "pasting": pasting,
    "detail": detail,
    "diversity": diversity,
    "misplaced": misplaced,
    "early": early,
    "ahead": ahead,
    "picture": picture,
    "style": style,
}
# Those that need no pass through the network.
AT_A_LOOK = ("diversity", "misplaced", "early", "ahead", "picture", "style")

# What is asked, and the ways it is asked in.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "does what the part has turn other images into the class": ("turning", "activation"),
    "does a piece of its images outweigh another image": ("mixing", "pasting", "detail"),
    "does it hold many kinds of things": ("diversity",),
    "does it show other classes": ("misplaced",),
    "is it learned too soon": ("early", "ahead"),
    "does it share a picture, or how it is made": ("picture", "style"),
}


def entropy(classes: NDArray[np.int64]) -> float:
    """Return the entropy of classes, int64 (n,), n at least 1, in nats: 0 where all are the same."""
    shares = np.unique(classes, return_counts=True)[1] / len(classes)
    return -float((shares * np.log(shares)).sum())


def _stands_off(of_images: NDArray[np.float32], part: Part) -> float:
    likeness = shared_picture(of_images, part.members)
    inside, outside = likeness[part.members], likeness[~part.members]
    spread = np.sqrt((inside.var() + outside.var()) / 2)
    return float((inside.mean() - outside.mean()) / max(spread, 1e-9))


def _outweighs(scene: Scene, part: Part, combine: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Return the class's mean probability for images of the part combined with others, less that for the rest."""
    inside, outside = (
        float(scene.probability(combine(donors, scene.host_pixels[: len(donors)])).mean())
        for donors in scene.donors(part)
    )
    return inside - outside
