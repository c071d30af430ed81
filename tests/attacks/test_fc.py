"""Feature collision: poison of the target class has the features of the source class."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.fc import FeatureCollision
from antibackdoor.attacks.surrogate import features, train_surrogate
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

FAST = {"steps": 25, "surrogate_epochs": 2}


@pytest.fixture
def make(tiny, runtime):
    def prepare(data, attack):
        fit = Trainer(runtime, Seeds(1))
        return attack.prepare(data, build_model=tiny(data), fit=fit, seeds=Seeds(2))

    return prepare


def nearest_distance(network, images, victims):
    """Relative squared distance to the nearest victim, float (N,)."""
    own, goals = features(network, images), features(network, victims)
    return (torch.cdist(own, goals) / goals.norm(dim=1).mean()).square().min(1).values


@pytest.mark.parametrize("trigger", ["none", "patch"])
def test_poison_collides_within_its_bound_and_keeps_its_label(blobs, make, tiny, runtime, trigger):
    data = blobs(100, height=16, width=16)
    attack = make(data, FeatureCollision(target=3, source=6, trigger=trigger, watermark=0.2, epsilon=24, **FAST))
    poisoned = poison(data, attack, rate=0.8, rate_of="class", generator=torch.Generator().manual_seed(0))
    assert int(poisoned.poison.sum()) == 8
    assert torch.equal(poisoned.observed.labels, data.labels)
    assert data.labels[poisoned.poison].eq(3).all()
    # Nothing of an image is more than the bound from a mix with some source image.
    base, stamped = (x.images[poisoned.poison].float() / 255 for x in (data, poisoned.observed))
    victims = data.images[data.labels == 6].float() / 255
    if trigger == "patch":
        victims = attack.stamp_test(victims, torch.arange(10), torch.full((10,), 6))
    mixes = 0.8 * base[:, None] + 0.2 * victims[None]
    away = (stamped[:, None] - mixes).abs().flatten(2).amax(2).min(1).values
    assert away.max() <= (24 + 0.5 + 1e-3) / 255
    network = train_surrogate(data, build_model=tiny(data), fit=Trainer(runtime, Seeds(1)), seeds=Seeds(2), epochs=2)
    start = mixes[torch.arange(8), (stamped[:, None] - mixes).abs().flatten(2).amax(2).argmin(1)]
    assert nearest_distance(network, stamped, victims).mean() < 0.5 * nearest_distance(network, start, victims).mean()


def test_the_test_images_are_of_the_source_class(blobs, make):
    data = blobs(100, height=16, width=16)
    plain = make(data, FeatureCollision(target=9, trigger="none", **FAST))
    assert plain.source == 0
    tested = triggered_test(data, plain)
    assert torch.equal(tested.observed.images, data.images[data.labels == 0])
    assert tested.original_labels.eq(0).all()
    assert tested.observed.labels.eq(9).all()
    patched = make(data, FeatureCollision(target=9, trigger="patch", **FAST))
    changed = (triggered_test(data, patched).observed.images != tested.observed.images).any(1)
    assert changed.any(0).sum() <= 16
    assert changed[:, 11:15, 11:15].float().mean() > 0.5


def test_given_victims_take_the_place_of_the_source_class(blobs, make):
    data, unseen = blobs(60, height=16, width=16), blobs(60, height=16, width=16, seed=5)
    victims = unseen.images[unseen.labels == 1][:1]
    attack = FeatureCollision(trigger="none", watermark=0.5, epsilon=1, **FAST)
    aimed = make(data, attack.aim_at(victims))
    assert aimed.aims is not None
    rows = aimed.candidates(data.labels).nonzero().squeeze(1)
    images = data.images[rows].float() / 255
    stamped = aimed.stamp(images, rows, data.labels[rows])
    assert ((stamped - (images + victims.float() / 255) / 2).abs() <= 1.51 / 255).all()
    assert not torch.equal(stamped, make(data, attack).stamp(images, rows, data.labels[rows]))
    with pytest.raises(PoisonError, match="uint8"):
        attack.aim_at(victims.float())


def test_same_seed_same_bytes_in_any_chunks(blobs, make, tmp_path, monkeypatch):
    data = blobs(80, channels=1, height=16, width=20)
    attack = FeatureCollision(surrogates=2, **FAST)
    first = make(data, attack)
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    second = make(data, attack)
    assert torch.equal(first.changes, second.changes)
    rows = first.rows
    images, labels = data.images[rows].float() / 255, data.labels[rows]
    whole = first.stamp(images, rows, labels)
    assert torch.equal(
        torch.cat([first.stamp(images[p], rows[p], labels[p]) for p in (slice(0, 3), slice(3, 8))]), whole
    )
    # Whole steps of 255, so storage loses nothing.
    assert (whole * 255 - (whole * 255).round()).abs().max() < 1e-3


def test_share_limits_the_poison(blobs, make):
    data = blobs(100, height=16, width=16)
    attack = make(data, FeatureCollision(share=0.5, **FAST))
    poisoned = poison(data, attack, rate=0.5, rate_of="class", generator=torch.Generator())
    assert torch.equal(poisoned.poison.nonzero().squeeze(1), attack.rows)
    with pytest.raises(PoisonError, match="5 were prepared; raise share"):
        poison(data, attack, rate=0.6, rate_of="class", generator=torch.Generator())
    other = data.images[1:2].float() / 255
    assert torch.equal(attack.stamp(other, torch.tensor([1]), data.labels[1:2]), other)
    with pytest.raises(PoisonError, match="prepared for images"):
        attack.stamp(torch.rand(1, 3, 8, 8), attack.rows[:1], torch.zeros(1, dtype=torch.int64))


def test_bad_settings_and_data(blobs, make):
    for settings, name in (
        ({"source": 0}, "source"),
        ({"watermark": 1.0}, "watermark"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"steps": 0}, "steps"),
        ({"share": 0.0}, "share"),
        ({"patch_size": 0}, "patch_size"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            FeatureCollision(**settings)
    data = blobs(40, height=16, width=16)
    with pytest.raises(PoisonError, match="source 11 is not another class"):
        make(data, FeatureCollision(source=11))
    with pytest.raises(PoisonError, match="exceeds 16x16"):
        make(data, FeatureCollision(trigger="patch", patch_size=16))
    with pytest.raises(PoisonError, match="no"):
        make(data.select((data.labels != 1).nonzero().squeeze(1)), FeatureCollision())
    with pytest.raises(PoisonError, match="must be prepared"):
        FeatureCollision().stamp(torch.rand(1, 3, 8, 8), torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(PoisonError, match="must be prepared"):
        FeatureCollision().test_candidates(data.labels)
