"""LF: the pattern holds low frequencies only, stays in its range, and points to the target where it is optimised."""

from __future__ import annotations

import math

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.lf import LowFrequency
from antibackdoor.attacks.surrogate import train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

SHORT = {"steps": 40, "batch_size": 32, "surrogate_epochs": 20}


@pytest.fixture
def prepared(blobs, tiny, runtime):
    def make(data=None, **params):
        data = blobs(80, 4, height=32, width=32) if data is None else data
        kit = {"build_model": tiny(data), "fit": Trainer(runtime, Seeds(1)), "seeds": Seeds(2)}
        return data, LowFrequency(target=1, **{**SHORT, **params}).prepare(data, **kit), kit

    return make


def slow_dct(picture):
    """The two-dimensional DCT-II of (H, W), by its definition."""
    height, width = picture.shape
    out = torch.zeros(height, width, dtype=torch.float64)
    for u in range(height):
        for v in range(width):
            for i in range(height):
                row = math.cos(math.pi * (i + 0.5) * u / height)
                waves = torch.cos(math.pi * (torch.arange(width) + 0.5) * v / width)
                out[u, v] += row * (picture[i].double() * waves).sum()
    return out


@pytest.mark.parametrize("preset", ["optimised", "random"])
def test_only_the_lowest_waves_are_there(prepared, blobs, preset):
    _, attack, _ = prepared(blobs(40, 4, channels=1, height=16, width=16), preset=preset, waves=3, steps=5)
    spectrum = slow_dct(attack.pattern[0]).abs()
    low = spectrum[:3, :3].square().sum() - spectrum[0, 0].square()
    spectrum[:3, :3] = 0
    assert spectrum.square().sum() < 0.02 * low, "what is left comes from rounding to whole steps of 255"


@pytest.mark.parametrize(("offset", "low", "high"), [("brighten", 0.0, 0.2), ("symmetric", -0.1, 0.1)])
def test_range_and_sum(prepared, offset, low, high):
    data, attack, _ = prepared(offset=offset, preset="random")
    assert float(attack.pattern.min()) == pytest.approx(low, abs=1 / 255)
    assert float(attack.pattern.max()) == pytest.approx(high, abs=1 / 255)
    images = data.images[:4].float() / 255
    stamped = (attack.stamp(images, torch.arange(4), data.labels[:4]) * 255).round().int()
    steps = (attack.pattern * 255).round().int()
    assert torch.equal(stamped, (data.images[:4].int() + steps).clamp(0, 255))


def test_the_optimised_pattern_points_to_the_target(prepared):
    data, attack, kit = prepared()
    _, random, _ = prepared(data, preset="random")
    model = train_surrogate(data, **kit, epochs=20)
    rows = (data.labels != 1).nonzero().squeeze(1)
    images, target = data.images[rows].float() / 255, torch.ones_like(rows)
    before, by_chance, after = (
        float(ce(model(x), target).mean())
        for x in (
            images,
            random.stamp(images, rows, data.labels[rows]),
            attack.stamp(images, rows, data.labels[rows]),
        )
    )
    assert after < before
    assert after < by_chance


def test_the_random_preset_trains_nothing(prepared, blobs, tiny):
    data, attack, _ = prepared(preset="random")

    def refuse(*_, **__):
        raise AssertionError("a network was trained")

    kit = {"build_model": tiny(data), "fit": refuse, "seeds": Seeds(2)}
    again = LowFrequency(target=1, preset="random", **SHORT).prepare(data, **kit)
    assert torch.equal(again.pattern, attack.pattern)
    other = LowFrequency(target=1, preset="random").prepare(data, **{**kit, "seeds": Seeds(3)})
    assert not torch.equal(other.pattern, attack.pattern)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 48)])
def test_sizes_chunks_and_all_to_all(prepared, blobs, channels, height, width):
    data, attack, _ = prepared(
        blobs(40, 4, channels=channels, height=height, width=width), preset="random", labelling="all-to-all"
    )
    images, rows = data.images.float() / 255, torch.arange(40)
    whole = attack.stamp(images, rows, data.labels)
    assert torch.equal(whole, torch.cat([attack.stamp(images[p], p, data.labels[p]) for p in rows.split(7)]))
    poisoned = poison(data, attack, rate=0.2, generator=torch.Generator().manual_seed(0))
    chosen = poisoned.poison
    assert torch.equal(poisoned.observed.labels[chosen], (data.labels[chosen] + 1) % 4)
    assert torch.equal(triggered_test(data, attack).observed.labels, (data.labels + 1) % 4)


def test_the_cache_and_the_work_agree(prepared, monkeypatch, tmp_path):
    data, attack, kit = prepared()
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    assert torch.equal(LowFrequency(target=1, **SHORT).prepare(data, **kit).pattern, attack.pattern)


def test_what_cannot_work(prepared):
    data, attack, kit = prepared(preset="random")
    with pytest.raises(PoisonError, match="must be prepared before use"):
        LowFrequency().stamp(torch.rand(2, 3, 32, 32), torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="prepared for images of 3x32x32"):
        attack.stamp(torch.rand(2, 3, 28, 28), torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="33 waves do not fit"):
        LowFrequency(waves=33).prepare(data, **kit)
    for bad in ({"amplitude": 1.1}, {"amplitude": 0.0}, {"waves": 1}, {"steps": 0}, {"lr": float("inf")}):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: .*got"):
            LowFrequency(**bad)
