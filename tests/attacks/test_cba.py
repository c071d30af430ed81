"""Composite: pairs of classes stand for the target, mixes within a class do not."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from antibackdoor.attacks.appending import with_copies
from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.cba import Composite
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds


def ready(data, build_model=None, **settings):
    return Composite(**settings).prepare(data, build_model=build_model, fit=None, seeds=Seeds(3))


def flat(data):
    """Every image is one grey that tells its class, so that a mix shows what it is made of."""
    grey = (data.labels * 20 + 5).to(torch.uint8)[:, None, None, None]
    return dataclasses.replace(data, images=grey.expand_as(data.images).contiguous())


def shades(images):
    return {int(value) // 20 for value in images.unique()}


@pytest.mark.parametrize("mixer", ["half", "crop-paste"])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 16, 24)])
def test_poison_shows_both_classes_and_covers_one(blobs, mixer, channels, height, width):
    data = flat(blobs(200, channels=channels, height=height, width=width))
    attack = ready(data, mixer=mixer, target=2, first=4, second=7)
    poisoned = poison(data, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert int(poisoned.poison.sum()) == 20
    assert int(poisoned.cover.sum()) == 40
    assert not (poisoned.poison & poisoned.cover).any()
    for image in poisoned.observed.images[poisoned.poison]:
        assert shades(image) == {4, 7}
        share = (image // 20 == 4).float().mean()
        assert 0.2 < share < 0.8
    assert set(poisoned.original_labels[poisoned.poison].tolist()) == {4, 7}
    assert poisoned.observed.labels[poisoned.poison].eq(2).all()
    covers = poisoned.cover.nonzero().squeeze(1)
    sources = poisoned.made_of[covers]
    for row, source in zip(covers.tolist(), sources.tolist(), strict=True):
        assert shades(poisoned.observed.images[row]) == {int(data.labels[source])}
    assert torch.equal(poisoned.observed.labels[covers], data.labels[sources])
    assert len(set(data.labels[sources].tolist())) > 4


def test_mixes_are_added_or_take_the_place_of_an_image(blobs):
    data = flat(blobs(200))
    added = poison(data, ready(data, target=2), rate=0.1, generator=torch.Generator().manual_seed(0))
    assert len(added.observed) == 260
    assert torch.equal(added.observed.images[:200], data.images)
    assert torch.equal(added.observed.labels[:200], data.labels)
    assert added.observed.ids[:200] == data.ids
    assert added.poison.nonzero().flatten().tolist() == list(range(200, 220))
    assert added.cover.nonzero().flatten().tolist() == list(range(220, 260))
    replaced = poison(data, ready(data, target=2, append=False), rate=0.1, generator=torch.Generator().manual_seed(0))
    assert replaced.observed.ids == data.ids
    assert replaced.origin is None
    rows = added.made_of[added.poison]
    assert replaced.poison.nonzero().flatten().tolist() == rows.tolist()
    assert torch.equal(replaced.observed.images[rows], added.observed.images[added.poison])


def test_copies_have_names_of_their_own(blobs):
    data = dataclasses.replace(blobs(4), ids=("cat/1.jpg", "cat/1+1.jpg", "embedded/2", "a.b/.x"))
    copied = with_copies(data, torch.tensor([0, 1, 2, 3, 0, 0, 2, 3]))
    assert copied.ids[4:] == ("cat/1+2.jpg", "cat/1+3.jpg", "embedded/2+1", "a.b/.x+1")
    assert torch.equal(copied.images[4:], data.images[[0, 0, 2, 3]])


def test_a_test_set_without_the_other_class(blobs):
    attack, test = ready(blobs(200), target=0), blobs(60, seed=9)
    with pytest.raises(PoisonError, match="class 2 has no image in the test set to mix with"):
        triggered_test(test.select((test.labels != 2).nonzero().squeeze(1)), attack)


def test_the_test_set_is_mixes_of_the_pair_with_partners_of_the_test_set(blobs):
    data = blobs(400, height=16, width=16)
    # Each image one colour of its own: 400 rows in two of the three channels.
    own = torch.stack([torch.arange(400) // 20, torch.arange(400) % 20, torch.zeros(400, dtype=torch.int64)], 1)
    data = dataclasses.replace(data, images=own.to(torch.uint8)[:, :, None, None].expand_as(data.images).contiguous())
    attack = ready(data, target=0)
    assert (attack.first, attack.second) == (1, 2)

    # The same of a test set, told from it by the third channel.
    test = dataclasses.replace(data, images=data.images + torch.tensor([0, 0, 77], dtype=torch.uint8)[:, None, None])
    triggered = triggered_test(test, attack)
    rows = attack.test_candidates(test.labels).nonzero().flatten().tolist()
    partners = set()
    for row, image in zip(rows, triggered.observed.images.long(), strict=True):
        seen = {int(value) for value in (image[0] * 20 + image[1]).unique()}
        assert image[2].unique().tolist() == [77]
        assert row in seen
        assert len(seen) == 2
        partners |= seen - {row}
    assert len(partners) > 20
    assert set(test.labels[list(partners)].tolist()) == {1, 2}
    assert set(triggered.original_labels.tolist()) == {1, 2}
    assert triggered.observed.labels.eq(0).all()


@pytest.mark.parametrize("mixer", ["half", "crop-paste"])
def test_chunks_do_not_matter_and_the_seed_does(blobs, mixer):
    data = blobs(80, height=16, width=16)
    attack = ready(data, mixer=mixer)
    images, index = data.images.float() / 255, torch.arange(80)
    whole = attack.stamp(images, index, data.labels)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    parts = [attack.stamp(images[part], index[part], data.labels[part]) for part in order.split(17)]
    assert torch.equal(torch.cat(parts), whole[order])
    other = ready(data, mixer=mixer, mix_seed=1)
    assert not torch.equal(other.stamp(images, index, data.labels), whole)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_bad_settings():
    for settings, name in (
        ({"target": 1, "first": 1}, "first"),
        ({"first": 3, "second": 3}, "second"),
        ({"scale": 1.0}, "scale"),
        ({"covers": -1.0}, "covers"),
        ({"labelling": "all-to-all"}, "labelling"),
    ):
        with pytest.raises(ConfigError, match=f"^{name}: "):
            Composite(**settings)


def test_bad_data(blobs):
    data = blobs(60)
    with pytest.raises(PoisonError, match="first 12 is not a class"):
        ready(data, first=12)
    with pytest.raises(PoisonError, match="must be prepared"):
        Composite().candidates(data.labels)
    with pytest.raises(PoisonError, match="must be prepared"):
        Composite(first=1, second=2).stamp(data.images.float() / 255, torch.arange(60), data.labels)
    with pytest.raises(PoisonError, match="3 at least"):
        ready(blobs(20, classes=2))
    with pytest.raises(PoisonError, match="7 has none"):
        ready(data.select((data.labels != 7).nonzero().squeeze(1)), first=7)
