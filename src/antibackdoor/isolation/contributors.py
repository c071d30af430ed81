"""Whose images are flagged: the share of each group of images, and which groups stand out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from antibackdoor.isolation.holm import holm

__all__ = ["LEVEL", "Group", "flagged_by_group"]

# Corrected p-value under which a group stands out.
LEVEL = 0.01


@dataclass(frozen=True)
class Group:
    """One contributor, source, or whatever else images are grouped by.

    Attributes:
        name: As in the table.
        images: How many are its.
        flagged: How many of these are flagged.
        expected: How many would be, if within every class flags fell on images of all groups alike.
        p: Probability of as many and more then, 0..1, exact; not corrected.
        corrected: The same, corrected by Holm for the number of groups.
    """

    name: str
    images: int
    flagged: int
    expected: float
    p: float
    corrected: float

    @property
    def stands_out(self) -> bool:
        """Whether the group has more flags than chance would give any of the groups."""
        return self.corrected < LEVEL


def flagged_by_group(groups: Sequence[str], labels: NDArray[np.int64], flagged: NDArray[np.bool_]) -> tuple[Group, ...]:
    """Count the flags of each group and test whether they are more than its images of each class explain.

    Within a class, flags are dealt to its images at random and those of the group are counted: a hypergeometric
    variable. The test is of the sum over classes, so that a group which holds much of a poisoned class does not stand
    out by that; nor does one that holds all of it, of which the flags say nothing.

    Args:
        groups: N names.
        labels: int64 (N,).
        flagged: bool (N,).

    Returns:
        One a name, the smallest p first, then the most flags, then by name.

    Source:
        The exact conditional test of Cochran, Mantel and Haenszel's problem (Birch, 1964), one-sided; Holm (1979).
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(groups):
        rows[name].append(row)
    sizes, flags = np.bincount(labels), np.bincount(labels[flagged], minlength=labels.max(initial=0) + 1)
    found = []
    for name, members in rows.items():
        own = np.asarray(members)
        count = int(flagged[own].sum())
        shares = np.bincount(labels[own], minlength=len(sizes))
        expected = float((shares * flags / np.maximum(sizes, 1)).sum())
        found.append((_tail(count, shares, sizes, flags), -count, name, len(own), expected))
    found.sort()
    corrected = holm([p for p, *_ in found])
    return tuple(
        Group(name, images, -negative, expected, p, adjusted)
        for (p, negative, name, images, expected), adjusted in zip(found, corrected, strict=True)
    )


def _tail(count: int, shares: NDArray[np.int64], sizes: NDArray[np.int64], flags: NDArray[np.int64]) -> float:
    """Return the probability of ``count`` flags and more."""
    if not count:
        return 1.0
    total = np.ones(1)
    for own, size, marked in zip(shares.tolist(), sizes.tolist(), flags.tolist(), strict=True):
        if own and marked:
            total = np.convolve(total, hypergeom.pmf(np.arange(min(own, marked) + 1), size, marked, own))
    return float(min(1.0, total[count:].sum()))
