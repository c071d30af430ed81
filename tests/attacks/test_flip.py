"""Label-only poisoning: no image changes, labels are chosen by matching an expert's steps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.flip import Flip, matching_gradient
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds
from antibackdoor.training import Trainer

FAST = {"experts": 1, "expert_epochs": 2, "checkpoints": 3, "passes": 2}


@pytest.fixture
def make(tiny, runtime):
    def prepare(data, **settings):
        fit = Trainer(runtime, Seeds(1))
        return Flip(**(FAST | settings)).prepare(data, build_model=tiny(data), fit=fit, seeds=Seeds(2))

    return prepare


def test_the_gradient_is_that_of_finite_differences(blobs, tiny):
    data = blobs(12, classes=4, height=8, width=8)
    network = tiny(data)(Seeds(0).generator("init")).eval().double()
    images, triggered = data.images[:9].double() / 255, data.images[9:].double() / 255
    labels, wanted = data.labels[:9], torch.tensor([1, 2, 3])
    chances = torch.rand((9, 4), generator=torch.Generator().manual_seed(0)).double().softmax(1)
    parameters = list(network.parameters())
    expert = torch.autograd.grad(
        F.cross_entropy(network(torch.cat([images, triggered])), torch.cat([labels, wanted]), reduction="sum") / 9,
        parameters,
    )

    def compare(chances):
        student = -(chances * network(images).log_softmax(1)).sum() / 9
        steps = torch.autograd.grad(student, parameters)
        gap = sum((a - b).square().sum() for a, b in zip(steps, expert, strict=True))
        return gap / sum(b.square().sum() for b in expert)

    loss, gradient = matching_gradient(network, network.state_dict(), images, labels, chances, triggered, wanted)
    torch.testing.assert_close(loss, compare(chances), rtol=1e-4, atol=0)
    for n, k in ((0, 0), (3, 2), (8, 3)):
        step = torch.zeros_like(chances)
        step[n, k] = 1e-3
        slow = (compare(chances + step) - compare(chances - step)) / 2e-3
        torch.testing.assert_close(gradient[n, k], slow, rtol=1e-3, atol=1e-7)


def test_only_labels_change_and_all_that_change_are_poison(blobs, make):
    data = blobs(120, height=16, width=16)
    attack = make(data, target=4)
    poisoned = poison(data, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(poisoned.observed.images, data.images)
    assert torch.equal(poisoned.observed.labels != data.labels, poisoned.poison)
    assert int(poisoned.poison.sum()) == 12
    # The images that moved furthest, whatever the generator.
    assert attack.margins[poisoned.poison].min() >= attack.margins[~poisoned.poison].max()
    more = poison(data, attack, rate=0.2, generator=torch.Generator().manual_seed(9))
    assert (more.poison | ~poisoned.poison).all()
    assert not poisoned.cover.any()


@pytest.mark.parametrize("trigger", ["patch", "sinusoid"])
def test_the_trigger_is_seen_at_test_alone(blobs, make, trigger):
    data = blobs(60, channels=1, height=16, width=20)
    attack = make(data, trigger=trigger)
    tested = triggered_test(data, attack)
    kept = data.labels != 0
    assert torch.equal(tested.original_labels, data.labels[kept])
    assert (tested.observed.images != data.images[kept]).flatten(1).any(1).all()
    assert tested.observed.labels.eq(0).all()


def test_matching_lowers_the_comparison(blobs, make, tiny, runtime):
    data = blobs(120, height=16, width=16)
    attack = Flip(**FAST, lr=100.0).prepare(
        data, build_model=tiny(data), fit=Trainer(runtime, Seeds(1)), seeds=Seeds(2)
    )
    network = tiny(data)(Seeds(0).generator("init"))
    copied = attack._copies(data, torch.Generator().manual_seed(0))
    weights = attack._train_expert(network, data, copied, Trainer(runtime, Seeds(5)), "expert")
    assert len(weights) == 2  # Before the second of two updates, and after it.
    start = 5 * F.one_hot(data.labels, 10).float()
    moved = attack._match(network, weights, data, copied, start, torch.Generator().manual_seed(0))
    assert torch.equal(start, 5 * F.one_hot(data.labels, 10).float())

    def compare(soft):
        pixels, triggered = data.images.float() / 255, copied.images.float() / 255
        losses = [
            matching_gradient(network, state, pixels, data.labels, soft.softmax(1), triggered, copied.labels)[0]
            for state in weights
        ]
        return torch.stack(losses).mean()

    assert compare(moved) < 0.95 * compare(start)


def test_same_seed_same_labels(blobs, make, tmp_path, monkeypatch):
    data = blobs(60, height=16, width=16)
    first = make(data, labelling="all-to-all")
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path))
    second = make(data, labelling="all-to-all")
    assert torch.equal(first.flips, second.flips)
    assert torch.equal(first.margins, second.margins)
    assert (first.flips != data.labels).all()
    assert len(triggered_test(data, first).observed) == 60


def test_bad_settings_and_data(blobs, make):
    for settings, name in (
        ({"delta": 0.0}, "delta"),
        ({"lr": -1.0}, "lr"),
        ({"experts": 0}, "experts"),
        ({"copies": 1.5}, "copies"),
        ({"patch_size": 0}, "patch_size"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            Flip(**settings)
    data = blobs(40, height=16, width=16)
    with pytest.raises(PoisonError, match="must be prepared"):
        Flip().relabel(data.labels, torch.arange(40))
    with pytest.raises(PoisonError, match="larger than the pictures"):
        make(data, trigger="patch", patch_size=17)
    with pytest.raises(PoisonError, match="nothing to trigger"):
        make(data.select((data.labels == 0).nonzero().squeeze(1)))


def test_a_source_class(blobs, make):
    data = blobs(120, height=16, width=16)
    attack = make(data, target=4, source=7)
    tested = triggered_test(data, attack)
    assert set(tested.original_labels.tolist()) == {7}
    assert tested.observed.labels.eq(4).all()
    copied = attack._copies(data, torch.Generator().manual_seed(0))
    assert len(copied) == 12
    assert copied.labels.eq(4).all()
    own = {image.numpy().tobytes() for image in tested.observed.images}
    assert {image.numpy().tobytes() for image in copied.images} <= own
    assert not torch.equal(attack.margins, make(data, target=4).margins)
    # Any label may be changed, of whatever class.
    assert attack.candidates(data.labels).all()
    with pytest.raises(ConfigError, match="^source: must be another class than the target, got 4"):
        Flip(target=4, source=4)
    with pytest.raises(ConfigError, match="^source: must be a class index"):
        Flip(source=-1)
    with pytest.raises(PoisonError, match="source 12 is not a class"):
        make(data, source=12)
    with pytest.raises(PoisonError, match="no image of class 7 is to change, so there is nothing to trigger"):
        make(data.select((data.labels != 7).nonzero().squeeze(1)), source=7)
