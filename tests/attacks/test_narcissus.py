"""Narcissus: one bounded noise that points to the target class, amplified at test."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison
from antibackdoor.attacks.narcissus import Narcissus
from antibackdoor.attacks.surrogate import train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops.objectives import ce
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

SHORT = {"steps": 40, "batch_size": 16, "surrogate_epochs": 20}


@pytest.fixture
def prepared(blobs, tiny, runtime):
    def make(data=None, **params):
        data = blobs(80, 4, height=32, width=32) if data is None else data
        kit = {"build_model": tiny(data), "fit": Trainer(runtime, Seeds(1)), "seeds": Seeds(2)}
        return data, Narcissus(target=1, **{**SHORT, **params}).prepare(data, **kit), kit

    return make


def test_the_noise_points_inward(prepared):
    data, attack, kit = prepared()
    model = train_surrogate(data, **kit, epochs=20)
    images = data.images.float() / 255
    for label in range(4):
        rows = (data.labels == label).nonzero().squeeze(1)
        target = torch.ones_like(rows)
        before = ce(model(images[rows]), target).mean()
        after = ce(model(attack.stamp(images[rows], rows, data.labels[rows])), target).mean()
        opposite = attack._ready(pattern=-attack.pattern).stamp(images[rows], rows, data.labels[rows])
        assert after < before, "of its own class and of all others"
        assert ce(model(opposite), target).mean() > before


def test_train_and_test_are_the_noise_once_and_amplified(prepared):
    data, attack, _ = prepared(eps=8.0, amplify=2.5)
    assert attack.pattern.abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(attack.pattern, (attack.pattern * 255).round() / 255)
    pixels, images = data.images[:3], data.images[:3].float() / 255
    for factor, stamp in ((1.0, attack.stamp), (2.5, attack.stamp_test)):
        stamped = stamp(images, torch.arange(3), data.labels[:3])
        for n, channel, row, column in ((0, 0, 0, 0), (1, 2, 31, 30), (2, 1, 16, 5)):
            wanted = int(pixels[n, channel, row, column]) / 255 + factor * float(attack.pattern[channel, row, column])
            assert float(stamped[n, channel, row, column]) == pytest.approx(min(1.0, max(0.0, wanted)), abs=1e-6)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 48)])
def test_sizes_chunks_and_labels(prepared, blobs, channels, height, width):
    data, attack, _ = prepared(blobs(40, 4, channels=channels, height=height, width=width), steps=5)
    images, rows = data.images.float() / 255, torch.arange(40)
    before = images.clone()
    whole = attack.stamp(images, rows, data.labels)
    assert torch.equal(whole, torch.cat([attack.stamp(images[p], p, data.labels[p]) for p in rows.split(7)]))
    assert torch.equal(images, before)
    poisoned = poison(data, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(poisoned.observed.labels, data.labels)
    assert bool((data.labels[poisoned.poison] == 1).all())


def test_the_cache_and_the_work_agree(prepared, monkeypatch, tmp_path):
    data, attack, kit = prepared()
    # The factor at test decides nothing of the noise.
    assert torch.equal(Narcissus(target=1, amplify=1.0, **SHORT).prepare(data, **kit).pattern, attack.pattern)
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    assert torch.equal(Narcissus(target=1, **SHORT).prepare(data, **kit).pattern, attack.pattern)


def test_what_cannot_work(prepared):
    data, _, kit = prepared(steps=2)
    with pytest.raises(PoisonError, match="must be prepared before use"):
        Narcissus().stamp_test(torch.rand(2, 3, 32, 32), torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="no images of the target class"):
        Narcissus(target=1).prepare(data.select((data.labels != 1).nonzero().squeeze(1)), **kit)
    poisoned = Narcissus(target=1, **{**SHORT, "steps": 2}).prepare(data, **kit)
    with pytest.raises(PoisonError, match="only 20 of the 80"):
        poison(data, poisoned, rate=0.5, generator=torch.Generator().manual_seed(0))
    for bad in ({"eps": 0.0}, {"eps": 256.0}, {"amplify": 0.0}, {"lr": -1.0}, {"batch_size": 0}):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: .*got"):
            Narcissus(**bad)
