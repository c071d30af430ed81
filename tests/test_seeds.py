from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from antibackdoor.seeds import Seeds


def draws(seeds, name, count=4):
    return torch.rand(count, generator=seeds.generator(name)).tolist()


@given(st.integers(), st.text(max_size=20))
def test_a_stream_is_a_function_of_seed_and_name(seed, name):
    assert Seeds(seed).derive(name) == Seeds(seed).derive(name)
    assert 0 <= Seeds(seed).derive(name) < 2**63
    assert Seeds(seed).generator(name).initial_seed() == Seeds(seed).derive(name)


@given(st.lists(st.tuples(st.integers(), st.text(max_size=8)), min_size=2, max_size=20, unique=True))
def test_streams_differ(pairs):
    assert len({Seeds(seed).derive(name) for seed, name in pairs}) == len(pairs)


def test_the_streams_stay_what_they_are():
    # A change of these numbers changes every published result.
    assert Seeds(0).derive("poison") == 214155752996391034
    assert Seeds(0).derive("init") == 1519069808562059438
    assert Seeds(7).child("x").derive("y") == 8112899595580339584


def test_asking_for_one_stream_does_not_disturb_another():
    seeds = Seeds(3)
    alone = draws(seeds, "init")
    draws(seeds, "poison", 1000)
    assert draws(seeds, "init") == alone
    assert draws(seeds, "poison") != alone


def test_children_have_streams_of_their_own():
    seeds = Seeds(3)
    assert seeds.child("a").derive("x") == Seeds(seeds.derive("a")).derive("x")
    assert len({seeds.child("a").derive("x"), seeds.child("b").derive("x"), seeds.derive("x")}) == 3


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    draws(Seeds(1), "poison")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_lives_where_it_is_asked_for():
    assert Seeds(1).generator("augment").device == torch.device("cpu")
    assert Seeds(1).generator("augment", torch.device("cpu")).initial_seed() == Seeds(1).derive("augment")
