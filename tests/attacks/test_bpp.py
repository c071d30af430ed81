"""BPP: rounding and dithering against a scan, and negatives that carry another image's change."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.base import poison
from antibackdoor.attacks.bpp import Bpp
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops import quantise as module
from antibackdoor.ops.quantise import dither, quantise
from antibackdoor.seeds import Seeds


def pictures(count=3, channels=3, height=9, width=12, seed=1):
    return torch.rand((count, channels, height, width), generator=torch.Generator().manual_seed(seed))


def slow_dither(images, levels):
    """Floyd and Steinberg's scan, one pixel at a time."""
    values = images * (levels - 1)
    _, _, height, width = images.shape
    for i in range(height):
        for j in range(width):
            old = values[:, :, i, j].clone()
            values[:, :, i, j] = old.round().clamp(0, levels - 1)
            error = old - values[:, :, i, j]
            for di, dj, weight in ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16)):
                if i + di < height and 0 <= j + dj < width:
                    values[:, :, i + di, j + dj] += error * weight
    return values / (levels - 1)


@pytest.mark.parametrize("levels", [2, 8, 32])
@pytest.mark.parametrize("shape", [(3, 3, 9, 12), (2, 1, 12, 9), (1, 1, 1, 7), (1, 2, 7, 1)])
def test_dithering_is_the_scan(shape, levels):
    images = pictures(*shape)
    before = images.clone()
    assert torch.equal(dither(images, levels), slow_dither(images, levels))
    assert torch.equal(images, before)


def test_dithering_in_parts_is_the_same(monkeypatch):
    images = pictures(5)
    whole = dither(images, 8)
    monkeypatch.setattr(module, "_PART", 1)
    assert torch.equal(dither(images, 8), whole)
    assert dither(images[:0], 8).shape == (0, 3, 9, 12)


def test_dithering_keeps_the_mean_where_rounding_does_not():
    grey = torch.full((1, 1, 32, 32), 0.2)
    assert abs(float(dither(grey, 4).mean()) - 0.2) < 0.01
    assert abs(float(quantise(grey, 4).mean()) - 0.2) > 0.1


@pytest.mark.parametrize("dithering", [True, False])
@pytest.mark.parametrize("levels", [4, 8])
def test_only_the_levels_are_left_after_storage(levels, dithering):
    stamped = Bpp(levels=levels, dithering=dithering).stamp(pictures(), torch.arange(3), torch.arange(3))
    stored = (stamped * 255).round().int().unique().tolist()
    assert set(stored) <= {round(255 * level / (levels - 1)) for level in range(levels)}


def prepared(blobs, tiny, count=100, **params):
    clean = blobs(count, channels=3)
    return clean, Bpp(**params).prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))


def test_covers_carry_the_change_of_another_image(blobs, tiny):
    clean, attack = prepared(blobs, tiny, dithering=False)
    grey = torch.full((100, 3, 28, 28), 0.5)
    change = attack.stamp_cover(grey, torch.arange(100), clean.labels) - grey
    everyone = clean.images.float() / 255
    changes = quantise(everyone, 8) - everyone
    found = torch.cdist(change.flatten(1), changes.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert float(found.values.max()) < 1e-3
    assert not (found.indices == torch.arange(100)).any()
    assert len(found.indices.unique()) > 40


def test_covers_need_preparation(blobs):
    images = torch.zeros(1, 3, 28, 28)
    with pytest.raises(PoisonError, match="must be prepared before use"):
        Bpp().stamp_cover(images, torch.arange(1), torch.arange(1))


def test_two_images_are_enough_for_covers_of_another(blobs, tiny):
    clean = blobs(20, classes=2).select(torch.arange(2))
    attack = Bpp().prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))
    other = clean.images[[1, 0]].float() / 255
    mine = clean.images.float() / 255
    expected = (mine + dither(other, 8) - other).clamp(0, 1)
    assert torch.allclose(attack.stamp_cover(mine, torch.arange(2), clean.labels), expected, atol=1e-6)


def test_chunks_do_not_matter(blobs, tiny):
    _, attack = prepared(blobs, tiny)
    images, index = pictures(6, 3, 28, 28), torch.tensor([9, 3, 8, 1, 0, 7])
    for stamp in (attack.stamp, attack.stamp_cover):
        whole = stamp(images, index, index)
        assert torch.equal(whole, torch.cat([stamp(images[i : i + 2], index[i : i + 2], index) for i in (0, 2, 4)]))


def test_poison_and_covers(blobs, tiny):
    clean, attack = prepared(blobs, tiny, target=1, cover_ratio=0.5)
    planted = poison(clean, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert (int(planted.poison.sum()), int(planted.cover.sum())) == (10, 5)
    assert torch.equal(planted.observed.labels[planted.cover], clean.labels[planted.cover])
    assert (planted.observed.labels[planted.poison] == 1).all()


@pytest.mark.parametrize(("params", "words"), [({"levels": 1}, "levels: "), ({"cover_ratio": 11}, "cover_ratio: ")])
def test_bad_values(params, words):
    with pytest.raises(ConfigError, match=words):
        Bpp(**params)
