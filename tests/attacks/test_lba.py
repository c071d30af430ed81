"""LBA: patched images come to lie where the target's images lie in feature space."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison
from antibackdoor.attacks.lba import LatentBackdoor
from antibackdoor.attacks.surrogate import features, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

SHORT = {"steps": 60, "batch_size": 32, "surrogate_epochs": 20}


@pytest.fixture
def prepared(blobs, tiny, runtime):
    def make(data=None, **params):
        data = blobs(80, 4, height=32, width=32) if data is None else data
        kit = {"build_model": tiny(data), "fit": Trainer(runtime, Seeds(1)), "seeds": Seeds(2)}
        return data, LatentBackdoor(target=1, **{**SHORT, **params}).prepare(data, **kit), kit

    return make


def test_the_patch_brings_features_to_the_target(prepared):
    # The tiny network's features are local, so that only a large patch reaches many of them.
    data, attack, kit = prepared(size=24, margin=2, ce_weight=0.0)
    model = train_surrogate(data, **kit, epochs=20)
    images = data.images.float() / 255
    own = features(model, images[data.labels == 1])
    mean, spread = own.mean(0), own.std(0) + 0.1 * own.std(0).mean()
    rows = (data.labels != 1).nonzero().squeeze(1)

    def apart(pictures):
        return float((((features(model, pictures) - mean) / spread) ** 2).mean())

    clean = apart(images[rows])
    random = attack._ready(pattern=torch.rand(attack.pattern.shape, generator=torch.Generator().manual_seed(0)))
    by_chance = apart(random.stamp(images[rows], rows, data.labels[rows]))
    patched = apart(attack.stamp(images[rows], rows, data.labels[rows]))
    assert patched < clean
    assert patched < by_chance


def test_the_patch_replaces_what_is_below_it_and_nothing_else(prepared):
    data, attack, _ = prepared()
    images = data.images[:2].float() / 255
    stamped = attack.stamp(images, torch.arange(2), data.labels[:2])
    wanted = images.clone()
    wanted[:, :, 25:31, 25:31] = attack.pattern
    assert attack.pattern.shape == (3, 6, 6)
    assert torch.equal(stamped, wanted)


def test_the_cache_and_the_work_agree(prepared, monkeypatch, tmp_path):
    data, attack, kit = prepared()
    assert torch.equal(LatentBackdoor(target=1, **SHORT).prepare(data, **kit).pattern, attack.pattern)
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    state = torch.get_rng_state()
    fresh = LatentBackdoor(target=1, **SHORT).prepare(data, **kit)
    assert torch.equal(fresh.pattern, attack.pattern)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 48, 32)])
def test_sizes_chunks_and_labels(prepared, blobs, channels, height, width):
    data, attack, _ = prepared(blobs(40, 4, channels=channels, height=height, width=width))
    images, rows = data.images.float() / 255, torch.arange(40)
    whole = attack.stamp(images, rows, data.labels)
    assert torch.equal(whole, torch.cat([attack.stamp(images[p], p, data.labels[p]) for p in rows.split(7)]))
    poisoned = poison(data, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert poisoned.observed.labels[poisoned.poison].tolist() == [1] * 4
    assert not bool((data.labels[poisoned.poison] == 1).any())


def test_what_cannot_work(prepared, blobs):
    data, _, kit = prepared()
    with pytest.raises(PoisonError, match="must be prepared before use"):
        LatentBackdoor().stamp(torch.rand(2, 3, 32, 32), torch.arange(2), data.labels[:2])
    with pytest.raises(PoisonError, match="no images of classes other than the target"):
        LatentBackdoor(target=1).prepare(data.select((data.labels == 1).nonzero().squeeze(1)), **kit)
    with pytest.raises(PoisonError, match="no images of the target class"):
        LatentBackdoor(target=1).prepare(data.select((data.labels != 1).nonzero().squeeze(1)), **kit)
    for bad in ({"ce_weight": -1.0}, {"batch_size": 0}, {"steps": 0}, {"margin": -1}):
        with pytest.raises(ConfigError, match=f"^{next(iter(bad))}: .*got"):
            LatentBackdoor(**bad)
