"""The referee's ruling on single images; what it does to a search is in tests/defences/test_filter.py."""

import pytest
import torch

from antibackdoor.isolation import ruling

# Ten suspects, five that are nearly like them, and five others, all of one class; the same again of another class.
LABELS = torch.arange(40) // 20
PLACE = torch.arange(40) % 20
FIRST = LABELS == 0
SUSPECTS = FIRST & (PLACE < 10)
NEAR = FIRST & (PLACE < 15)


def judged(of_suspects, before, after, **rest):
    """Rule where both networks give all other images what they should, and the near ones these probabilities."""
    near = NEAR & ~SUSPECTS
    first = torch.where(near, before, 0.95)
    second = torch.where(SUSPECTS, of_suspects, torch.where(near, after, 0.95))
    return ruling(SUSPECTS, LABELS, before=first, after=second, confident=0.9, shown=~NEAR, **rest)


@pytest.mark.parametrize(
    ("before", "after", "missed"),
    [(0.6, 0.05, 5), (0.4, 0.05, 0), (0.6, 0.15, 0), (0.95, 0.05, 5), (0.95, 0.15, 0)],
)
def test_what_is_nearly_like_wrong_suspects_is_missed_where_only_the_first_network_accepts_it(before, after, missed):
    ruled = judged(0.01, before, after, near=NEAR)
    assert int(ruled.missed.sum()) == missed
    assert not bool((ruled.missed & ~NEAR).any())
    assert not bool(ruled.cleared.any())


@pytest.mark.parametrize("rest", [{}, {"near": NEAR, "slow": [0]}], ids=["not near", "slow"])
def test_others_that_were_not_shown_are_missed_only_where_the_first_network_is_certain(rest):
    assert not bool(judged(0.01, 0.6, 0.05, **rest).missed.any())
    assert torch.equal(judged(0.01, 0.95, 0.05, **rest).missed, NEAR & ~SUSPECTS)


def test_beside_suspects_that_are_not_clearly_wrong_it_takes_certainty_too():
    assert not bool(judged(0.5, 0.6, 0.05, near=NEAR).missed.any())


def test_beside_suspects_that_are_let_go_nothing_is_missed():
    ruled = judged(0.95, 0.95, 0.05, near=NEAR)
    assert not bool(ruled.missed.any())
    assert torch.equal(ruled.free, FIRST)
    assert torch.equal(ruled.cleared, SUSPECTS)
