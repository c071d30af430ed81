"""Trojan: the patch is made from a network, and drives the chosen units."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.surrogate import features, head_of, train_surrogate
from antibackdoor.attacks.trojan import Trojan, _chosen
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

SHORT = {"steps": 40, "backgrounds": 8, "surrogate_epochs": 10}


@pytest.fixture
def prepared(blobs, tiny, runtime):
    def make(data=None, **params):
        data = blobs(80, 4, height=32, width=32) if data is None else data
        kit = {"build_model": tiny(data), "fit": Trainer(runtime, Seeds(1)), "seeds": Seeds(2)}
        return data, Trojan(target=1, **{**SHORT, **params}).prepare(data, **kit), kit

    return make


def test_the_patch_replaces_what_is_below_it_and_nothing_else(prepared):
    data, attack, _ = prepared()
    images = data.images[:3].float() / 255
    stamped = attack.stamp(images, torch.arange(3), data.labels[:3])
    for n in range(3):
        for row in range(32):
            for column in range(32):
                inside = 21 <= row < 29 and 21 <= column < 29
                wanted = attack.pattern[:, row - 21, column - 21] if inside else images[n, :, row, column]
                assert torch.equal(stamped[n, :, row, column], wanted)


def test_the_patch_drives_the_chosen_units_beyond_what_a_random_one_does(prepared):
    data, attack, kit = prepared(steps=100)
    model = train_surrogate(data, **kit, epochs=10)
    images = data.images.float() / 255
    usual = features(model, images)
    units = _chosen(head_of(model).weight, usual, 2)
    driven = features(model, attack.stamp(images, torch.arange(80), data.labels))[:, units].mean()
    random = attack._ready(pattern=torch.rand(attack.pattern.shape, generator=torch.Generator().manual_seed(0)))
    by_chance = features(model, random.stamp(images, torch.arange(80), data.labels))[:, units].mean()
    assert driven > by_chance + 0.5 * usual[:, units].std()
    assert driven > usual[:, units].mean()


def test_units_are_those_with_the_most_weight_leaving_them_among_the_alive():
    weight = torch.tensor([[1.0, -9.0, 2.0, 0.1], [-1.0, 9.0, 2.0, 0.1]])
    activations = torch.tensor([[0.0, 3.0, 1.0, 5.0], [1.0, 3.0, 0.0, 4.0]])
    assert _chosen(weight, activations, 2).tolist() == [2, 0]


def test_the_same_seed_gives_the_same_patch_and_another_another(prepared, monkeypatch, tmp_path):
    data, attack, kit = prepared()
    _, again, _ = prepared(data)
    assert torch.equal(attack.pattern, again.pattern)
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    fresh = Trojan(target=1, **SHORT).prepare(data, **kit)
    assert torch.equal(attack.pattern, fresh.pattern)
    other = Trojan(target=1, **SHORT).prepare(data, **{**kit, "seeds": Seeds(3)})
    assert not torch.equal(attack.pattern, other.pattern)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 48)])
def test_sizes_chunks_and_rounding(prepared, blobs, channels, height, width):
    data, attack, _ = prepared(blobs(24, 4, channels=channels, height=height, width=width), alpha=0.7)
    images, rows = data.images.float() / 255, torch.arange(24)
    before = images.clone()
    whole = attack.stamp(images, rows, data.labels)
    parts = [attack.stamp(images[part], part, data.labels[part]) for part in rows.split(5)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(images, before)
    assert whole.shape == images.shape
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert torch.equal(attack.pattern, (attack.pattern * 255).round() / 255)


def test_poisoning_all_to_all(prepared):
    data, attack, _ = prepared(labelling="all-to-all")
    poisoned = poison(data, attack, rate=0.25, generator=torch.Generator().manual_seed(0))
    rows = poisoned.poison
    assert int(rows.sum()) == 20
    assert torch.equal(poisoned.observed.labels[rows], (data.labels[rows] + 1) % 4)
    assert len(triggered_test(data, attack).poison) == 80


def test_what_cannot_work(prepared, blobs):
    data, attack, kit = prepared()
    images = data.images[:2].float() / 255
    with pytest.raises(PoisonError, match="must be prepared before use"):
        Trojan().stamp(images, torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match=r"prepared for images of 3x32x32 .* these are 3x16x32"):
        attack.stamp(images[:, :, :16], torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="larger than the pictures"):
        Trojan(size=30, margin=3).prepare(data, **kit)
    with pytest.raises(PoisonError, match="target 4 is not a class"):
        dataclasses.replace(Trojan(), target=4).prepare(data, **kit)
    for bad in ({"units": 0}, {"gain": 0.0}, {"alpha": 1.5}, {"backgrounds": -1}, {"lr": float("nan")}, {"size": 0}):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: .*got"):
            Trojan(**bad)
