from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from antibackdoor.errors import ConfigError
from antibackdoor.isolation import flag_share, most_suspect_first, rank_within_classes

some_scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=60)


@given(some_scores, st.integers(0, 100))
def test_the_most_suspect_share_is_flagged(values, percent):
    scores = torch.tensor(values)
    flagged = flag_share(scores, percent / 100)
    assert int(flagged.sum()) == math.ceil(percent * len(values) / 100)
    if bool(flagged.any()) and not bool(flagged.all()):
        assert scores[flagged].min() >= scores[~flagged].max()


def test_ties_are_broken_always_in_the_same_way_and_not_by_position():
    # A set that is sorted by class, where everything is equally suspect.
    labels = torch.arange(1000) // 100
    flagged = flag_share(torch.zeros(1000), 0.1)
    assert torch.equal(flagged, flag_share(torch.zeros(1000), 0.1))
    assert len(labels[flagged].unique()) == 10


@given(some_scores)
def test_most_suspect_first_is_a_sorted_permutation(values):
    scores = torch.tensor(values)
    order = most_suspect_first(scores)
    assert sorted(order.tolist()) == list(range(len(values)))
    assert bool((scores[order].diff() <= 0).all())


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    most_suspect_first(torch.zeros(9))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_share_that_is_exact_in_decimals_is_exact():
    # 0.07 * 100 is a little over 7 in binary.
    assert int(flag_share(torch.arange(100.0), 0.07).sum()) == 7
    assert int(flag_share(torch.arange(101.0), 0.01).sum()) == 2


@pytest.mark.parametrize("share", [-0.01, 1.01, float("nan")])
def test_a_share_outside_its_range(share):
    with pytest.raises(ConfigError, match="^share: "):
        flag_share(torch.zeros(3), share)


def test_ranks_by_hand():
    scores = torch.tensor([5.0, 1.0, 3.0, 100.0, 50.0])
    labels = torch.tensor([0, 0, 0, 1, 1])
    assert rank_within_classes(scores, labels).tolist() == pytest.approx([1, 1 / 3, 2 / 3, 1, 0.5])


def test_an_easy_class_has_no_advantage():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    scores = torch.rand(400, generator=generator) + 10 * (labels == 2)
    assert set(labels[flag_share(scores, 0.2)].tolist()) == {2}
    ranked = flag_share(rank_within_classes(scores, labels), 0.2)
    assert torch.bincount(labels[ranked]).tolist() == [20] * 4


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 3)), min_size=1, max_size=60))
def test_ranks_are_a_permutation_in_each_class_and_keep_its_order(pairs):
    scores, labels = torch.tensor([float(s) for s, _ in pairs]), torch.tensor([y for _, y in pairs])
    before = scores.clone()
    ranks = rank_within_classes(scores, labels)
    assert torch.equal(scores, before)
    for label in labels.unique():
        rows = labels == label
        count = int(rows.sum())
        assert sorted((ranks[rows] * count).round().int().tolist()) == list(range(1, count + 1))
        assert bool((scores[rows][ranks[rows].argsort()].diff() >= 0).all())
