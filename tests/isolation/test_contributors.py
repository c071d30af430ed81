"""Whose images are flagged: counts, and the exact test against enumeration and against Fisher's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import fisher_exact

from antibackdoor.isolation.contributors import flagged_by_group


def enumerated(own, labels, flagged):
    """The p-value by going through all ways to deal each class's flags to its images."""
    ways = []
    for label in np.unique(labels):
        rows, count = np.flatnonzero(labels == label), int(flagged[labels == label].sum())
        ways.append([sum(own[row] for row in chosen) for chosen in itertools.combinations(rows, count)])
    sums = [sum(each) for each in itertools.product(*ways)]
    return np.mean([each >= int((own & flagged).sum()) for each in sums])


@pytest.mark.parametrize("seed", range(6))
def test_p_is_that_of_all_ways_to_deal_the_flags(seed):
    generator = np.random.default_rng(seed)
    labels = np.arange(14) % 2
    flagged = generator.random(14) < 0.4
    groups = [f"g{n}" for n in generator.integers(0, 3, 14)]
    for found in flagged_by_group(groups, labels, flagged):
        own = np.array([name == found.name for name in groups])
        assert found.p == pytest.approx(enumerated(own, labels, flagged))
        assert (found.images, found.flagged) == (own.sum(), (own & flagged).sum())


def test_of_one_class_it_is_fishers_test():
    flagged = np.array([True] * 9 + [False] * 31)
    groups = ["a"] * 7 + ["b"] * 20 + ["a"] * 3 + ["b"] * 10
    found = {group.name: group for group in flagged_by_group(groups, np.zeros(40, dtype=np.int64), flagged)}
    table = [[7, 3], [2, 28]]
    assert found["a"].p == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert found["a"].expected == pytest.approx(10 * 9 / 40)


def test_who_brought_the_poison_stands_out_and_who_owns_the_class_does_not():
    # Class 0 is clean but for 30 flagged images of "mallory"; class 1 is all "olga"'s, and half flagged.
    labels = np.array([0] * 300 + [1] * 40)
    flagged = np.zeros(340, dtype=bool)
    flagged[:30] = flagged[300:320] = True
    groups = ["mallory"] * 30 + [f"c{n % 9}" for n in range(270)] + ["olga"] * 40
    found = flagged_by_group(groups, labels, flagged)
    assert [group.name for group in found if group.stands_out] == ["mallory"]
    assert found[0].name == "mallory"
    olga = next(group for group in found if group.name == "olga")
    assert (olga.p, olga.expected, olga.flagged) == (pytest.approx(1.0), 20.0, 20)


def test_corrected_values_are_holms():
    labels, groups = np.zeros(12, dtype=np.int64), list("aaaabbbbcccc")
    flagged = np.array([True, True, True, False] + [True] + [False] * 7)
    found = flagged_by_group(groups, labels, flagged)
    ps = [group.p for group in found]
    assert ps == sorted(ps)
    expected = np.minimum(1, np.maximum.accumulate([3 * ps[0], 2 * ps[1], ps[2]]))
    assert [group.corrected for group in found] == pytest.approx(list(expected))


def test_without_flags_nobody_stands_out():
    found = flagged_by_group(["a", "b"], np.array([0, 1]), np.zeros(2, dtype=bool))
    assert [(group.p, group.corrected, group.stands_out) for group in found] == [(1.0, 1.0, False)] * 2


def test_chance_alone_seldom_makes_anybody_stand_out():
    generator, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        labels = generator.integers(0, 3, 200)
        flagged = (labels == 1) & (generator.random(200) < 0.3)
        groups = [f"g{n}" for n in generator.integers(0, 20, 200)]
        alarms += any(group.stands_out for group in flagged_by_group(groups, labels, flagged))
    assert alarms <= 8  # of 200 at a level of 1 %: 2 expected at most
