"""Evidence on a part of a class: small functions of one signature, each a statistic that is large where it is poison.

``STATISTICS`` is the table: ``(Seen, Part) -> float``. What each gives on clean trainings is its null, in
``calibration``; a statistic is worth nothing without one. To add one, write a function, give it a line in the table and
print its null with ``benchmarks/bank/replay.py --null``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import Part
from antibackdoor.training import evaluating

__all__ = ["STATISTICS", "Statistic", "diversity", "mixing", "transfer"]

Statistic: TypeAlias = Callable[[Seen, Part], float]

# Images of other classes that a part's difference is put on, and images of a part that are mixed with them.
_HOSTS, _DONORS, _CHUNK = 240, 240, 128
_LEARNED = 0.7  # probability from which a label counts as learned


def transfer(seen: Seen, part: Part) -> float:
    """Return how far what the part has, and the rest of its class has not, turns images of other classes into it.

    The difference of the two mean images is added to images of all other classes. The statistic is the share that is
    turned, less the share that is taken for the class anyway, averaged over the half of the source classes in which
    fewest are: a trigger turns images of any class, what is typical of a class only those that are like it. A fixed
    trigger, a patch or a pattern over the image, is its own mean difference.

    Source:
        Ours. The question is that of trigger inversion (Neural Cleanse, S&P 2019), answered without optimising.
    """
    rows, inside = part.views.rows, part.members
    images = seen.data.images
    difference = _mean(images, rows[inside]) - _mean(images, rows[~inside])
    hosts = _others(seen, part.views.label, _HOSTS)
    before = _taken_for(seen, _pixels(images, hosts), part.views.label)
    after = _taken_for(seen, (_pixels(images, hosts) + difference).clamp(0, 1), part.views.label)
    return _of_fewest(after - before, seen.labels[hosts])


def mixing(seen: Seen, part: Part) -> float:
    """Return how much more firmly images of the part keep their class than the rest when mixed with foreign ones.

    Every image is averaged with one of another class; the statistic is the mean probability of its own label in the
    part, less that in the rest. A trigger, wherever it is in the image, outweighs the other picture.

    Source:
        STRIP (ACSAC 2019) asks for the entropy of such mixtures; here parts of one class are compared.
    """
    rows, inside = part.views.rows, part.members
    kept = []
    for side in (rows[inside], rows[~inside]):
        donors = side[_spread(len(side), _DONORS)]
        hosts = _others(seen, part.views.label, len(donors))
        mixed = 0.5 * _pixels(seen.data.images, donors[: len(hosts)]) + 0.5 * _pixels(seen.data.images, hosts)
        kept.append(float(_probability(seen, mixed, part.views.label).mean()))
    return kept[0] - kept[1]


def diversity(seen: Seen, part: Part) -> float:
    """Return how much more the part's contents differ, as those of other classes do, than the rest's: a log ratio.

    In the directions of feature space in which the other classes differ, a part of a clean class is spread as its class
    is, wherever it lies; images of many classes under one label are spread as those classes are, whatever trigger they
    share. The ratio of variances is weighted by the share of the part that is learned, since wrong labels that came
    about by mistake are not.

    Source:
        Ours; after SCAn (USENIX Security 2021), which takes a class apart by the variation that all classes share.
    """
    inside, views = part.members, part.views
    spread = [float((views.white[side] @ views.between).var(0).mean()) for side in (inside, ~inside)]
    learned = float((seen.trajectories[-1, views.rows[inside]] < np.log(-np.log(_LEARNED))).mean())
    return learned * float(np.log(max(spread[0], 1e-9) / max(spread[1], 1e-9)))


STATISTICS: dict[str, Statistic] = {"transfer": transfer, "mixing": mixing, "diversity": diversity}


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """Return at most so many indices, evenly over ``count``."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _others(seen: Seen, label: int, count: int) -> NDArray[np.int64]:
    """Return rows of other classes, as evenly over them as their sizes allow, always the same ones."""
    rows = np.flatnonzero((seen.labels != label) & seen.trained)
    order = np.random.default_rng(0).permutation(rows)
    rank = np.zeros(len(order), dtype=np.int64)
    for other in np.unique(seen.labels[order]):
        own = seen.labels[order] == other
        rank[own] = np.arange(own.sum())
    return order[np.argsort(rank, kind="stable")][:count]


def _pixels(images: Tensor, rows: NDArray[np.int64]) -> Tensor:
    return images[torch.from_numpy(rows)].float().div(255)


def _mean(images: Tensor, rows: NDArray[np.int64]) -> Tensor:
    total = torch.zeros(images.shape[1:])
    for part in torch.from_numpy(rows).split(1024):
        total += images[part].float().sum(0)
    return total / (255 * len(rows))


@torch.no_grad()
def _probability(seen: Seen, pixels: Tensor, label: int) -> NDArray[np.float64]:
    parts = []
    with evaluating(seen.network), seen.runtime.autocast():
        for batch in pixels.split(_CHUNK):
            given = batch.to(seen.runtime.device, memory_format=torch.channels_last)
            parts.append(seen.network(given).float().softmax(1)[:, label].cpu())
    found: NDArray[np.float64] = torch.cat(parts).double().numpy()
    return found


def _taken_for(seen: Seen, pixels: Tensor, label: int) -> NDArray[np.float64]:
    return (_probability(seen, pixels, label) > 0.5).astype(np.float64)


def _of_fewest(turned: NDArray[np.float64], sources: NDArray[np.int64]) -> float:
    """Return the mean over the lower half of the source classes of the mean of each."""
    means = np.sort([turned[sources == source].mean() for source in np.unique(sources)])
    return float(means[: max(1, len(means) // 2)].mean())
