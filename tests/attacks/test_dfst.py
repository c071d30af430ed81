"""DFST: the mix, the style, and the covers of detoxification."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import antibackdoor.attacks.dfst as dfst
from antibackdoor.attacks.base import poison
from antibackdoor.attacks.dfst import Dfst
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.models import WideResNet
from antibackdoor.models.generators import Injector, frozen
from antibackdoor.ops.perception import gram
from antibackdoor.ops.styles import sunsets
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

QUICK = {"steps": 3, "width": 4, "surrogate_epochs": 1, "detox_epochs": 1, "injector_steps": 2}


@pytest.fixture
def prepare(blobs, tiny, runtime):
    def run(attack, data=None, seed=0):
        data = data or blobs(64, height=16, width=20)
        seeds = Seeds(seed)
        return attack.prepare(data, build_model=tiny(data), fit=Trainer(runtime, seeds), seeds=seeds)

    return run


def floats(data):
    return data.images.float() / 255


def test_stamp_mixes_original_and_styled(prepare, blobs):
    attack, pixels = prepare(Dfst(alpha=0.7, rounds=0, **QUICK)), floats(blobs(3, height=16, width=20))
    stamped = attack.stamp(pixels, torch.arange(3), torch.arange(3))
    for n in range(3):
        with torch.no_grad():
            styled = attack.generator(pixels[n : n + 1])[0]
        torch.testing.assert_close(stamped[n], 0.3 * pixels[n] + 0.7 * styled, atol=1e-4, rtol=0)


def test_training_brings_the_colours_of_the_style(prepare, blobs):
    data = blobs(100, height=16, width=16)
    attack = prepare(Dfst(rounds=0, alpha=1.0, **{**QUICK, "steps": 60, "width": 8}), data)
    pixels, rows = floats(data), torch.arange(100)

    def appearance(images):
        return gram(torch.cat([images, torch.ones_like(images[:, :1])], 1)).mean(0)

    goal = appearance(sunsets(256, data.shape, torch.Generator().manual_seed(0)))
    before = (appearance(pixels) - goal).norm()
    after = (appearance(attack.stamp(pixels, rows, rows)) - goal).norm()
    assert after < before / 2


def test_covers_take_the_injectors_in_turn_and_keep_labels(prepare, blobs, monkeypatch):
    monkeypatch.setattr(dfst, "_KEPT", 0.0)
    data = blobs(64, height=16, width=20)
    attack = prepare(Dfst(target=4, rounds=2, cover_share=0.5, **QUICK), data)
    assert len(attack.injectors) == 2
    pixels, rows = floats(data), torch.arange(64)
    covers = attack.stamp_cover(pixels, rows, data.labels)
    with torch.no_grad():
        for number, injector in enumerate(attack.injectors):
            torch.testing.assert_close(covers[number::2], injector(pixels[number::2]), atol=1e-4, rtol=0)
    made = poison(data, attack, rate=0.25, generator=torch.Generator().manual_seed(0))
    assert (int(made.poison.sum()), int(made.cover.sum())) == (16, 8)
    assert torch.equal(made.observed.labels[made.cover], data.labels[made.cover])
    assert (made.observed.labels[made.poison] == 4).all()
    assert (made.observed.images[made.cover] != data.images[made.cover]).any()


@pytest.mark.parametrize(("rounds", "kept"), [(0, 0.0), (2, 2.0)])
def test_without_a_successful_injector_there_are_no_covers(prepare, blobs, monkeypatch, rounds, kept):
    monkeypatch.setattr(dfst, "_KEPT", kept)
    data = blobs(64, height=16, width=20)
    attack = prepare(Dfst(rounds=rounds, **QUICK), data)
    assert attack.injectors == ()
    made = poison(data, attack, rate=0.25, generator=torch.Generator().manual_seed(0))
    assert not made.cover.any()
    pixels = floats(data)
    assert torch.equal(attack.stamp_cover(pixels, torch.arange(64), data.labels), pixels)


def test_the_same_bytes_in_any_chunks(prepare, blobs, monkeypatch):
    monkeypatch.setattr(dfst, "_KEPT", 0.0)
    data = blobs(64, height=16, width=20)
    attack = prepare(Dfst(rounds=2, **QUICK), data)
    pixels, rows = floats(data), torch.arange(64)
    kept = pixels.clone()
    for stamp in (attack.stamp, attack.stamp_cover, attack.stamp_test):
        whole = stamp(pixels, rows, data.labels)
        parts = [stamp(pixels[part], part, data.labels[part]) for part in rows.split(13)]
        assert torch.equal(whole, torch.cat(parts))
        assert 0 <= whole.min() <= whole.max() <= 1
    assert torch.equal(pixels, kept)


def test_preparation_is_repeatable_and_cached(prepare, monkeypatch, tmp_path):
    monkeypatch.setattr(dfst, "_KEPT", 0.0)
    state = torch.random.get_rng_state()
    first = prepare(Dfst(**QUICK))
    assert torch.equal(state, torch.random.get_rng_state())
    calls = []
    monkeypatch.setattr(Dfst, "_train_style", lambda *_: calls.append(1))
    again = prepare(Dfst(**QUICK))
    assert not calls
    monkeypatch.undo()
    monkeypatch.setattr(dfst, "_KEPT", 0.0)
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    afresh = prepare(Dfst(**QUICK))
    for other in (again, afresh):
        assert len(other.injectors) == len(first.injectors) == 1
        for network, twin in ((first.generator, other.generator), (first.injectors[0], other.injectors[0])):
            for weight, same in zip(network.state_dict().values(), twin.state_dict().values(), strict=True):
                assert torch.equal(weight, same)


def test_all_to_all(prepare, blobs):
    data = blobs(64, height=16, width=20)
    attack = prepare(Dfst(labelling="all-to-all", **QUICK), data)
    made = poison(data, attack, rate=0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.observed.labels[made.poison], (data.labels[made.poison] + 1) % 10)


def test_taps_are_the_last_convolutions_of_three_resolutions():
    network = WideResNet(10, 1, 3, 10).eval()
    taps = dfst._taps(network, torch.rand(1, 3, 32, 32))
    maps = dfst._maps(network, taps, torch.rand(2, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    with pytest.raises(ConfigError, match=r"nn.Conv2d"):
        dfst._taps(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(1, 3, 4, 4))


def test_errors():
    pixels, rows = torch.zeros(2, 3, 16, 16), torch.arange(2)
    for stamp in (Dfst().stamp, Dfst().stamp_cover):
        with pytest.raises(PoisonError, match="must be prepared before use"):
            stamp(pixels, rows, rows)
    for name, value in (
        ("steps", 0),
        ("width", 0),
        ("surrogate_epochs", 0),
        ("detox_epochs", 0),
        ("injector_steps", 0),
        ("rounds", -1),
        ("content", -1.0),
        ("cover_share", -0.1),
        ("alpha", 0.0),
        ("alpha", 1.1),
    ):
        with pytest.raises(ConfigError, match=rf"^{name}: .*got {value}"):
            Dfst(**{name: value})


def test_a_frozen_network_has_no_gradients():
    network = frozen(Injector(3))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
