"""What cells share comes back as it was, and only whole, of its own data."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from antibackdoor.attacks import ATTACKS
from antibackdoor.benchmark.shared import (
    fingerprint,
    intact,
    pack_planted,
    pack_weights,
    unpack_planted,
    unpack_weights,
)
from antibackdoor.config import PoisonConfig
from antibackdoor.data.sources import Loaded
from antibackdoor.pipeline import plant
from antibackdoor.registry import parameters_of
from antibackdoor.seeds import Seeds

# One of each kind: a patch, covers, clean labels, every class a target, images that are added.
CASES = {
    "badnets": {"corner": "all"},
    "wanet": {"grid": 4} if "grid" in {f.name for f in dataclasses.fields(ATTACKS.get("wanet"))} else {},
    "sig": {},
    "tact": {},
    "cba": {},
    "all-to-all": {"labelling": "all-to-all"},
}


@pytest.fixture
def loaded(blobs):
    return Loaded(blobs(60, 3, height=16, width=16), blobs(30, 3, height=16, width=16, seed=1))


def planted_of(case, loaded, runtime, tiny):
    name = "badnets" if case == "all-to-all" else case
    config = PoisonConfig(name=name, rate=0.2, params=CASES[case])
    return name, plant(config, loaded, tiny(loaded.train), runtime, Seeds(0))


def same(one, other):
    assert torch.equal(one.observed.images, other.observed.images)
    assert torch.equal(one.observed.labels, other.observed.labels)
    assert one.observed.ids == other.observed.ids
    assert one.observed.classes == other.observed.classes
    for name in ("poison", "cover", "original_labels", "made_of"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.target == other.target


@pytest.mark.parametrize("case", CASES)
def test_a_poisoned_set_comes_back_bit_for_bit(case, loaded, runtime, tiny):
    name, planted = planted_of(case, loaded, runtime, tiny)
    of = fingerprint(loaded)
    blob = pack_planted(planted, loaded, of)
    again = unpack_planted(blob, name, loaded, of)
    same(planted.train, again.train)
    same(planted.triggered, again.triggered)
    assert parameters_of(again.attack) == parameters_of(planted.attack)
    assert again.attack.single_target == planted.attack.single_target
    assert intact(blob)


def test_only_whole_bytes_of_the_same_data_are_used(loaded, runtime, tiny):
    name, planted = planted_of("badnets", loaded, runtime, tiny)
    of = fingerprint(loaded)
    blob = pack_planted(planted, loaded, of)
    middle = len(blob) - 200
    flipped = blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]
    for damaged in (None, b"", b"nonsense", blob[:-10], blob[:100], flipped):
        assert unpack_planted(damaged, name, loaded, of) is None
        assert not intact(damaged)
    assert unpack_planted(blob, name, loaded, "of other data") is None
    changed = dataclasses.replace(loaded.train, images=loaded.train.images ^ 1)
    assert fingerprint(Loaded(changed, loaded.test)) != of
    assert fingerprint(Loaded(loaded.train, None)) != of
    weights = pack_weights(tiny(loaded.train)(torch.Generator()), of)
    assert intact(weights)
    assert unpack_planted(weights, name, loaded, of) is None
    assert unpack_weights(blob, of) is None


def test_weights_come_back(loaded, runtime, tiny):
    model = runtime.place(tiny(loaded.train)(torch.Generator().manual_seed(1)))
    again = unpack_weights(pack_weights(model, "x"), "x")
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
