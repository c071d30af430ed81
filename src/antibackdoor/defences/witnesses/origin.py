"""Poison from one class alone: images that show another class and share a picture which the images of that class lack.

The parts of ``parts`` are compared with the rest of their class, and what they hold must come from everywhere. Poison
that a source class alone is turned with (TaCT) passes both: it looks like wrong labels of one kind. Compared with the
class that it shows it stands out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.natural import Natural
from antibackdoor.defences.witnesses.parts import purified, shared_picture
from antibackdoor.defences.witnesses.scene import Scene
from antibackdoor.defences.witnesses.views import SMALLEST_CLASS, Views, evenly
from antibackdoor.isolation.mixture import fit_mixture

__all__ = ["Origin", "origin_of"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

# Source classes that are looked at, those that most came from; images that are a part; images of the source class.
_SOURCES, _FEWEST, _MOST = 2, 10, 2000


@dataclass(frozen=True, eq=False)
class Origin:
    """Images of a class that show another one.

    Attributes:
        source: The class that they show.
        statistic: How far they stand off it by the picture that they share, in deviations, times the share of its
            images that this picture turns; 0 where there are none.
        members: bool (n,), which of the class they are, by ``Views.rows``.
        posterior: float64 (n,), probability of every image of the class to have the picture.
    """

    source: int
    statistic: float
    members: Bools
    posterior: Floats


def origin_of(scene: Scene, views: Views, natural: Natural) -> Origin | None:
    """Return the strongest sign of poison from one class alone, or None where no class has sent enough images.

    Images under the label that are learned, and in which the encoder's classifier sees another class, are set against
    the images of that class: a matched filter for the picture that they share, in pixels whitened by what that class
    varies in (covers are in other classes, and hide the picture from what all classes vary in), cuts them once more
    (``parts.purified``). What the class would have to be changed by to be like them is put on images of it, in pixels
    and behind the first convolution, as ``evidence.turning`` does. A clean class gives wrong labels, which share no
    picture, or a kind of its own, which stands off gradually.

    Args:
        scene: Of the class.
        views: Of the class.
        natural: Whitens pixels.

    Source:
        Ours. TaCT is of Tang et al. (USENIX Security 2021), whose own answer, SCAn, looks at features alone.
    """
    found = [_compared(scene, views, natural, *pair) for pair in _sources(scene, views)]
    return max(found, key=lambda one: one.statistic, default=None)


def _sources(scene: Scene, views: Views) -> Iterator[tuple[int, Rows, Rows]]:
    """Yield the classes that most learned images show, these images and images of that class, both int64 rows."""
    labels, shown = scene.seen.labels, scene.features.shown
    known = np.flatnonzero(scene.learned(views.rows) & views.fitted)
    flows = []
    for source in np.unique(shown[views.rows[known]]):
        strangers = views.rows[known][shown[views.rows[known]] == source]
        returned = int(scene.learned(np.flatnonzero((labels == source) & (shown == scene.label))).sum())
        if source != scene.label and len(strangers) >= _FEWEST:
            flows.append((returned - len(strangers), int(source), strangers))
    for _, source, strangers in sorted(flows, key=lambda one: one[:2])[:_SOURCES]:
        own = np.flatnonzero((labels == source) & (shown == source) & scene.seen.trained)
        if len(own) >= SMALLEST_CLASS:
            yield source, strangers, own[evenly(len(own), _MOST)]


def _compared(scene: Scene, views: Views, natural: Natural, source: int, strangers: Rows, own: Rows) -> Origin:
    every = natural.against(own, np.concatenate([views.rows, own]))
    of_class = np.arange(len(every)) < len(views.rows)
    strange = np.isin(views.rows, strangers)
    compared = np.concatenate([strange, np.ones(len(own), dtype=bool)])
    pictures, inside = every[compared], of_class[compared]
    cut = purified(pictures, inside, np.ones_like(inside))
    if cut is not None and (cut & inside).sum() >= _FEWEST:
        inside = cut & inside
    likeness = shared_picture(pictures, inside)
    there = Scene(scene.seen, scene.features, scene.label, source)
    rows = np.concatenate([views.rows, own])[compared]
    turned = [there.turned(rows, inside, place) for place in (None, there.convolutions[0])]
    members = np.isin(views.rows, rows[inside])
    template = pictures[inside].mean(0) - pictures[~inside].mean(0)
    of_all = every[of_class] @ template
    # Images of this class in which the encoder errs stand off the other one as well, but so does the rest of the class.
    rest = of_all[~strange] - (pictures[~inside] @ template).mean() + likeness[~inside].mean()
    apart = min(_apart(likeness[inside], likeness[~inside]), _apart(likeness[inside], rest))
    return Origin(source, max(0.0, float(apart * np.mean(turned))), members, _posterior(of_all, members))


def _apart(one: Floats, other: Floats) -> float:
    """Return how far the one lies above most of the other in deviations of both (d'); 0 where there is no other.

    Some of the other may be poison too, in which the encoder sees a third class.
    """
    if not len(other):
        return 0.0
    middle = np.median(other)
    deviation = 1.4826 * np.median(np.abs(other - middle))
    return float((one.mean() - middle) / max(np.sqrt((one.var() + deviation**2) / 2), 1e-9))


def _posterior(likeness: NDArray[np.float32], members: Bools) -> Floats:
    """Return how probably each image has the picture, float64 (n,): two Gaussians, started from the members."""
    from sklearn.mixture import GaussianMixture

    if members.all():
        return np.ones(len(members))
    values = likeness.astype(np.float64)[:, None]
    start = [[values[side].mean()] for side in (members, ~members)]
    mixture = fit_mixture(GaussianMixture(2, means_init=start, random_state=0), values)
    found: Floats = mixture.predict_proba(values)[:, int(mixture.means_[:, 0].argmax())]
    return found
