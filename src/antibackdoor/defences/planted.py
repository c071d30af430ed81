"""The detection limit of a search: the smallest share of planted copies that it still finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from antibackdoor.isolation import with_planted_copies
from antibackdoor.seeds import Seeds
from antibackdoor.types import History, ImageSet

__all__ = ["detection_limit"]

# Shares of the set that are tried, and the share of the copies that must be found for the next to be tried.
_SHARES, _FOUND = (0.02, 0.01, 0.005, 0.002), 0.9

# Trains on a set of N + M images, in phases of names that begin so, and looks: the suspects, bool (N + M,), and what
# the phases left.
LookedAt = Callable[[ImageSet, str], tuple[Tensor, list[History]]]


def detection_limit(data: ImageSet, looked_at: LookedAt, seeds: Seeds) -> tuple[list[str], list[History]]:
    """Plant copies with a trigger of ours in ever smaller shares, until most of them are missed.

    Args:
        data: The set, N images.
        looked_at: Trains on the set with M copies after its own images, in phases of names that begin as it is told,
            and returns the suspects, bool (N + M,), and the histories.
        seeds: The run's streams; each share has its own copies, place and pattern.

    Returns:
        One sentence, and the histories of all trainings, of the set's own images.
    """
    histories: list[History] = []
    found: list[str] = []
    for share in _SHARES:
        longer, planted = with_planted_copies(
            data, max(1, round(share * len(data))), seeds.generator(f"control {share}")
        )
        suspects, phases = looked_at(longer, f"control {100 * share:g}")
        histories += [dataclasses.replace(history, losses=history.losses[:, : len(data)]) for history in phases]
        recall = int(suspects[planted].sum()) / max(1, int(planted.sum()))
        if recall < _FOUND:
            found.append(f"of {100 * share:g} % ({int(planted.sum())} images) {100 * recall:.0f} % were found")
            break
        found.append(f"of {100 * share:g} % all but {100 * (1 - recall):.0f} % were found")
    return [f"Planted control, copies with a patch of ours: {'; '.join(found)}."], histories
