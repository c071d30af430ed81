"""Whose images stand out of a batch: contributors or sources, beside one another and beside the earlier set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from antibackdoor.defences.against.judge import Judged
from antibackdoor.isolation.contributors import Group, flagged_by_group
from antibackdoor.isolation.holm import holm
from antibackdoor.types import Json

__all__ = ["by_group"]

_MOST = 1000
_EARLIER = "\0earlier set"  # no name of a table


def by_group(
    column: str, names: Sequence[str], labels: NDArray[np.int64], of_sample: NDArray[np.int64], judged: Judged
) -> dict[str, Json]:
    """Return whose images stand out; of many groups the 1,000 that stand out most.

    Of each group two things are counted: its images among the tenth of each class that is least like it, of new and old
    images together; and those among the tenth that keeps most to new images. Both are expected from how many images of
    each class it has, with exact p-values, of which the smaller counts, twice (Bonferroni); corrected by Holm for the
    number of groups.

    Args:
        column: What the groups are called.
        names: M names.
        labels: int64 (M,).
        of_sample: int64 (n,), labels of the old sample.
        judged: What came of the batch.
    """
    both = np.concatenate([labels, of_sample])
    unlike = flagged_by_group([*names, *[_EARLIER] * len(of_sample)], both, judged.unlike)
    crowded = {group.name: group for group in flagged_by_group(names, labels, judged.crowded)}
    pairs = [(group, crowded[group.name]) for group in unlike if group.name != _EARLIER]
    raw = [min(1.0, 2 * min(first.p, second.p)) for first, second in pairs]
    found = [
        (p, adjusted, *((second, "close to one another") if second.p < first.p else (first, "unlike their class")))
        for (first, second), p, adjusted in zip(pairs, raw, holm(raw), strict=True)
    ]
    found.sort(key=lambda each: (each[0], -each[2].flagged, each[2].name))
    listed: list[Json] = [_listed(group, p, adjusted, what) for p, adjusted, group, what in found[:_MOST]]
    return {"column": column, "count": len(found), "groups": listed}


def _listed(group: Group, p: float, corrected: float, what: str) -> dict[str, Json]:
    group = replace(group, p=p, corrected=corrected)
    return {**asdict(group), "stands_out": group.stands_out, "counted": what}
