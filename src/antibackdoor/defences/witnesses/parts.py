"""Groups of images within a class: what might be its poison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.witnesses.views import Views
from antibackdoor.isolation.mixture import fit_mixture

__all__ = ["Part", "alike", "parts_of", "purified", "shared_picture"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Source: TypeAlias = Literal["mixture", "picture", "style", "origin"]

_SMALLEST_PART = 10  # a part of fewer images is no group
# Gaussians that a class is described by: two cut it in halves where it has no poison, six leave little poison in
# company; each needs so many images.
_COMPONENTS, _EACH = (2, 4, 6), 20
# Steps towards a shared picture, and the least overlap (Jaccard) with the part that it started from.
_STEPS, _KEPT, _SAME = 3, 0.4, 0.9


@dataclass(frozen=True, eq=False)
class Part:
    """Some images of a class.

    Attributes:
        views: Of the class.
        members: bool (n,), images of the class that lie in it.
        source: "mixture", where they were learned and look alike; "picture" and "style", where they share a picture
            besides, or how they are made; "origin", where they show one other class and share a picture (``origin``).
    """

    views: Views
    members: Bools
    source: Source


def parts_of(views: Views) -> list[Part]:
    """Return what mixtures of two, four and six Gaussians tell apart, and what shares a picture or style in these."""
    from sklearn.mixture import GaussianMixture

    found: list[Part] = []
    for count in _COMPONENTS:
        if views.fitted.sum() < _EACH * count:
            continue
        mixture = GaussianMixture(count, reg_covar=1e-3, n_init=2, random_state=0)
        nearest = fit_mixture(mixture, views.points[views.fitted]).predict(views.points)
        for number in range(count):
            _add(found, Part(views, nearest == number, "mixture"))
    shared: tuple[tuple[Source, NDArray[np.float32]], ...] = (("picture", views.pictures), ("style", views.styles))
    for place, part in enumerate(tuple(found)):
        for source, of_images in shared:
            members = purified(of_images, part.members, views.fitted)
            if members is None:
                continue
            pure = Part(views, members, source)
            if alike(members, part.members) > _SAME:
                found[place] = pure
            else:
                _add(found, pure)
    return found


def shared_picture(pictures: NDArray[np.float32], inside: Bools) -> Floats:
    """Return how much each image has of what those inside share and the rest has not, float64 (n,).

    The difference of the mean pictures is the template of a matched filter in whitened pixels; an image takes no part
    in the mean that it is compared with.

    Args:
        pictures: float32 (n, P), whitened pixels.
        inside: bool (n,).
    """
    own = (pictures.astype(np.float64) ** 2).sum(1)
    sides = []
    for side in (inside, ~inside):
        likeness = pictures @ pictures[side].sum(0)
        sides.append(np.where(side, (likeness - own) / max(1, side.sum() - 1), likeness / side.sum()))
    found: Floats = (sides[0] - sides[1]).astype(np.float64)
    return found


def alike(one: Bools, other: Bools) -> float:
    """Return the Jaccard index of two sets, 0..1."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def purified(pictures: NDArray[np.float32], inside: Bools, fitted: Bools) -> Bools | None:
    """Return the images that share the picture of those inside, bool (n,), or None where that leads elsewhere.

    Args:
        pictures: float32 (n, P), whitened pixels.
        inside: bool (n,), a part.
        fitted: bool (n,), those that mixtures are fitted to.
    """
    from sklearn.mixture import GaussianMixture

    members = inside
    for _ in range(_STEPS):
        scores = shared_picture(pictures, members)
        start = [[scores[side].mean()] for side in (members, ~members)]
        mixture = fit_mixture(GaussianMixture(2, means_init=start, random_state=0), scores[fitted, None])
        new = mixture.predict(scores[:, None]) == mixture.means_[:, 0].argmax()
        if alike(new, inside) < _KEPT or not _large_enough(new):
            return None
        if (new == members).all():
            break
        members = new
    return members


def _large_enough(members: Bools) -> bool:
    return min(int(members.sum()), int((~members).sum())) >= _SMALLEST_PART


def _add(found: list[Part], part: Part) -> None:
    if _large_enough(part.members) and all(alike(part.members, known.members) <= _SAME for known in found):
        found.append(part)
