"""Dynamic: the painting formula, donors, and that another image's trigger does not fire."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.dynamic import Dynamic
from antibackdoor.attacks.minibatches import Minibatches, batch_size_for, descend
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer, TrainPlan
from antibackdoor.training.plan import Phase

QUICK = {"steps": 3, "mask_steps": 3, "surrogate_epochs": 1, "width": 4}


@pytest.fixture
def prepare(blobs, tiny, runtime):
    def run(attack, data=None, seed=0):
        data = data or blobs(64, height=16, width=20)
        seeds = Seeds(seed)
        return attack.prepare(data, build_model=tiny(data), fit=Trainer(runtime, seeds), seeds=seeds)

    return run


def floats(data):
    return data.images.float() / 255


def test_stamp_is_the_formula_on_every_pixel(prepare, blobs):
    attack, pixels = prepare(Dynamic(**QUICK)), floats(blobs(3, height=16, width=20, seed=4))
    stamped = attack.stamp(pixels, torch.arange(3), torch.arange(3))
    for n in range(3):
        with torch.no_grad():
            pattern = attack.generators.pattern(pixels[n : n + 1])[0]
            value = attack.generators.mask(pixels[n : n + 1])[0, 0]
        for row in range(16):
            for column in range(20):
                share = torch.tanh(20 * value[row, column] - 10) / 2 + 0.5
                for c in range(3):
                    x, p = pixels[n, c, row, column], pattern[c, row, column]
                    assert float(stamped[n, c, row, column]) == pytest.approx(float(x + (p - x) * share), abs=1e-4)


def test_every_row_has_one_donor_that_is_not_itself(prepare, blobs):
    data = blobs(64, height=16, width=20)
    attack = prepare(Dynamic(**QUICK), data)
    rows = torch.arange(64)
    assert torch.equal(attack.donor_of.sort().values, rows)
    assert not (attack.donor_of == rows).any()
    pixels = floats(data)
    made = attack.generators(pixels[attack.donor_of])
    expected = pixels + (made[:, :3] - pixels) * made[:, 3:]
    torch.testing.assert_close(attack.stamp_cover(pixels, rows, data.labels), expected, atol=1e-4, rtol=0)


def test_the_same_bytes_in_any_chunks(prepare, blobs):
    data = blobs(64, height=16, width=20)
    attack = prepare(Dynamic(**QUICK), data)
    pixels, rows = floats(data), torch.arange(64)
    kept = pixels.clone()
    for stamp in (attack.stamp, attack.stamp_cover, attack.stamp_test):
        whole = stamp(pixels, rows, data.labels)
        parts = [stamp(pixels[part], part, data.labels[part]) for part in rows.split(13)]
        assert torch.equal(whole, torch.cat(parts))
        assert 0 <= whole.min() <= whole.max() <= 1
    assert torch.equal(pixels, kept)


def test_preparation_is_repeatable_cached_and_leaves_the_random_state(prepare, monkeypatch, tmp_path):
    state = torch.random.get_rng_state()
    first = prepare(Dynamic(**QUICK))
    assert torch.equal(state, torch.random.get_rng_state())
    calls = []
    monkeypatch.setattr(Dynamic, "_train_mask", lambda *_: calls.append(1))
    again = prepare(Dynamic(**QUICK, cover_share=0.5))
    assert not calls, "the share of covers does not change the generators"
    monkeypatch.undo()
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    afresh = prepare(Dynamic(**QUICK))
    for (name, weight), other, third in zip(
        first.generators.state_dict().items(),
        again.generators.state_dict().values(),
        afresh.generators.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(weight, other), name
        assert torch.equal(weight, third), name


def test_poisoning_makes_covers_with_true_labels(prepare, blobs):
    data = blobs(64, height=16, width=20)
    attack = prepare(Dynamic(target=2, cover_share=0.5, **QUICK), data)
    made = poison(data, attack, rate=0.25, generator=torch.Generator().manual_seed(0))
    assert (int(made.poison.sum()), int(made.cover.sum())) == (16, 8)
    assert not (made.poison & made.cover).any()
    assert (made.observed.labels[made.poison] == 2).all()
    assert torch.equal(made.observed.labels[made.cover], data.labels[made.cover])
    assert (data.labels[made.poison | made.cover] != 2).all()
    assert (triggered_test(data, attack).original_labels != 2).all()


def test_all_to_all(prepare, blobs):
    data = blobs(64, height=16, width=20)
    attack = prepare(Dynamic(labelling="all-to-all", **QUICK), data)
    made = poison(data, attack, rate=0.2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.observed.labels[made.poison], (data.labels[made.poison] + 1) % 10)


def test_errors(prepare, blobs):
    pixels, rows = torch.zeros(2, 3, 16, 16), torch.arange(2)
    for stamp in (Dynamic().stamp, Dynamic().stamp_cover):
        with pytest.raises(PoisonError, match="must be prepared before use"):
            stamp(pixels, rows, rows)
    with pytest.raises(PoisonError, match="3x16x20 .*3x16x16"):
        prepare(Dynamic(**QUICK)).stamp_cover(pixels, rows, rows)
    with pytest.raises(PoisonError, match="at least 2"):
        prepare(Dynamic(**QUICK), blobs(1, classes=10))
    for name, value in (
        ("steps", 0),
        ("mask_steps", 0),
        ("surrogate_epochs", 0),
        ("width", 0),
        ("mask_density", 0.0),
        ("mask_density", 1.0),
        ("diversity", -1.0),
        ("diversity", float("nan")),
        ("cover_share", -0.1),
    ):
        with pytest.raises(ConfigError, match=rf"^{name}: .*got {value}"):
            Dynamic(**{name: value})


def test_batches_and_rates(blobs):
    assert batch_size_for((3, 32, 32), 64, least=8) == 64
    assert batch_size_for((3, 16, 16), 64, least=8) == 64
    assert batch_size_for((3, 64, 64), 64, least=8) == 16
    assert batch_size_for((3, 128, 128), 64, least=8) == 8
    data = blobs(5)
    batches = Minibatches(data, 12, torch.device("cpu"), Seeds(0), "x")
    images, labels = batches.draw()
    assert images.shape == (12, 3, 28, 28)
    assert torch.equal(images[0], data.images[data.labels == labels[0]][0] / 255)
    again = Minibatches(data, 12, torch.device("cpu"), Seeds(0), "x").draw()[0]
    assert torch.equal(images, again)
    layer = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=9.0)
    rates = [descend(optimizer, layer(torch.ones(1)).sum(), 0.5, step, 8) for step in range(8)]
    assert rates == [0.5, 0.5, 0.5, 0.5, 0.5, 0.375, 0.25, 0.125]


@pytest.mark.slow
def test_another_images_trigger_does_not_fire(prepare, blobs, tiny, runtime):
    data, test = blobs(1500, height=16, width=16), blobs(400, height=16, width=16, seed=9)
    attack = prepare(Dynamic(steps=300, mask_steps=150, surrogate_epochs=3, width=8), data)
    made = poison(data, attack, rate=0.15, generator=torch.Generator().manual_seed(0))
    model = tiny(data)(torch.Generator().manual_seed(1))
    plan = TrainPlan(epochs=12, batch_size=64, lr=0.05, augment=())
    Trainer(runtime, Seeds(3)).fit(model, made.observed, Phase("victim", plan))
    model.eval()
    aimed = test.labels != 0
    pixels, rows = floats(test), torch.arange(400)
    own = model(attack.stamp_test(pixels, rows, test.labels)).argmax(1)
    crossed = model(attack.stamp_cover(pixels, rows, test.labels)).argmax(1)
    success, wrong = (own[aimed] == 0).float().mean(), (crossed[aimed] == 0).float().mean()
    assert success > 0.6
    assert wrong < success / 2
