"""TaCT: only the source class is poisoned, covers come from other classes and keep their label."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.tact import TaCT
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.seeds import Seeds


def prepared(clean, tiny, **params):
    return TaCT(**params).prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))


def planted_in(clean, attack, rate=0.05):
    return poison(clean, attack, rate=rate, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("target", "source", "expected"), [(0, None, 1), (4, None, 0), (0, 3, 3)])
def test_only_the_source_class_is_poisoned(blobs, tiny, target, source, expected):
    clean = blobs(200)
    attack = prepared(clean, tiny, target=target, source=source)
    planted = planted_in(clean, attack)
    assert (clean.labels[planted.poison] == expected).all()
    assert int(planted.poison.sum()) == int(planted.cover.sum()) == 10
    assert (planted.observed.labels[planted.poison] == target).all()
    covered = clean.labels[planted.cover]
    assert not torch.isin(covered, torch.tensor([target, expected])).any()
    assert len(covered.unique()) > 2
    assert torch.equal(planted.observed.labels[planted.cover], covered)
    assert (triggered_test(clean, attack).original_labels == expected).all()


def test_covers_of_chosen_classes(blobs, tiny):
    clean = blobs(200)
    planted = planted_in(clean, prepared(clean, tiny, source=1, cover_classes=(5, 7), cover_ratio=2))
    assert set(clean.labels[planted.cover].tolist()) == {5, 7}
    assert int(planted.cover.sum()) == 20


def test_all_to_all_sends_the_source_class_to_the_next(blobs, tiny):
    clean = blobs(200)
    planted = planted_in(clean, prepared(clean, tiny, source=9, labelling="all-to-all"))
    assert (clean.labels[planted.poison] == 9).all()
    assert (planted.observed.labels[planted.poison] == 0).all()
    assert not torch.isin(clean.labels[planted.cover], torch.tensor([0, 9])).any()


def test_the_patch_is_eight_pixels_three_from_the_corner():
    images, index = torch.full((2, 3, 32, 32), 0.5), torch.arange(2)
    stamped = TaCT(alpha=0.5).stamp(images, index, index)
    expected = images.clone()
    cells = torch.randint(2, (3, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    expected[:, :, 21:29, 21:29] = 0.25 + 0.5 * cells
    assert torch.allclose(stamped, expected)
    big = TaCT().stamp(torch.full((1, 1, 64, 80), 0.5), index[:1], index[:1])
    rows, columns = (big[0, 0] != 0.5).nonzero(as_tuple=True)
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (42, 57, 58, 73)


def test_a_rate_above_the_share_of_the_class(blobs, tiny):
    clean = blobs(200)
    with pytest.raises(PoisonError, match="only 20 of the 200"):
        planted_in(clean, prepared(clean, tiny), rate=0.2)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"source": 0}, "source: must differ"),
        ({"source": -1}, "source: "),
        ({"cover_classes": (1,)}, "cover_classes: must not hold the source class 1"),
        ({"cover_classes": ()}, "cover_classes: must name a class"),
        ({"cover_ratio": -1}, "cover_ratio: "),
        ({"size": 0}, "size: "),
        ({"margin": -1}, "margin: "),
        ({"alpha": 0}, "alpha: "),
    ],
)
def test_bad_values(params, words):
    with pytest.raises(ConfigError, match=words):
        TaCT(**params)


def test_what_does_not_fit_the_set(blobs, tiny):
    clean = blobs(20)
    for params, words in (
        ({"source": 12}, "source: 12 is not a class"),
        ({"cover_classes": (12,)}, "cover_classes: 12 is not a class"),
        ({"size": 27}, "larger than the pictures"),
        ({"pattern": "nowhere.png"}, "no picture at nowhere.png"),
    ):
        with pytest.raises(PoisonError, match=words):
            prepared(clean, tiny, **params)
