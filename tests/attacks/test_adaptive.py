"""Adap-Blend and Adap-Patch: faint parts in training, all of it in tests, covers that keep their label."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.attacks.adap_blend import AdapBlend
from antibackdoor.attacks.adap_patch import AdapPatch
from antibackdoor.attacks.base import poison
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops.triggers import smooth_noise
from antibackdoor.seeds import Seeds

BOTH = pytest.mark.parametrize("cls", [AdapBlend, AdapPatch])


def black(count, channels=3, height=32, width=32):
    return torch.zeros(count, channels, height, width)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (32, 48), (30, 30)])
def test_each_image_carries_some_cells_of_the_pattern(height, width):
    attack, count = AdapBlend(pattern_seed=4), 50
    index = torch.arange(count)
    stamped = attack.stamp(black(count, 3, height, width), index, index)
    pattern = smooth_noise((3, height, width), torch.Generator().manual_seed(4))
    kinds = set()
    for image in stamped:
        carried = []
        for row in range(4):
            for column in range(4):
                # Cell r holds the rows whose r-th of four they are.
                rows = [y for y in range(height) if y * 4 // height == row]
                columns = [x for x in range(width) if x * 4 // width == column]
                cell, whole = image[:, rows][:, :, columns], 0.15 * pattern[:, rows][:, :, columns]
                assert bool((cell == 0).all()) or torch.allclose(cell, whole, atol=1e-6)
                carried.append(not bool((cell == 0).all()))
        assert sum(carried) == 8
        kinds.add(tuple(carried))
    assert len(kinds) > 40


def test_a_test_image_carries_the_whole_pattern():
    pattern = smooth_noise((3, 32, 32), torch.Generator().manual_seed(0))
    images = torch.full((2, 3, 32, 32), 0.5)
    index = torch.arange(2)
    assert torch.allclose(AdapBlend().stamp_test(images, index, index), 0.8 * images + 0.2 * pattern, atol=1e-6)


def test_all_cells_and_the_same_share_are_blend():
    attack = AdapBlend(kept=16, test_alpha=0.15)
    images, index = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    assert torch.allclose(attack.stamp(images, index, index), attack.stamp_test(images, index, index), atol=1e-6)


def test_each_image_carries_one_patch_of_four():
    attack, count = AdapPatch(), 200
    index = torch.arange(count)
    stamped = attack.stamp(black(count), index, index)
    kinds = stamped.flatten(1).unique(dim=0)
    assert len(kinds) == 4
    strongest = sorted(round(float(kind.max()), 2) for kind in kinds)
    assert strongest == pytest.approx([0.2, 0.3, 0.5, 0.5], abs=0.02)
    shares = [float((stamped.flatten(1) == kind).all(1).float().mean()) for kind in kinds]
    assert min(shares) > 0.15


def test_the_patches_are_where_they_are_said_to_be():
    attack, index = AdapPatch(), torch.arange(60)
    stamped = attack.stamp(torch.full((60, 3, 32, 32), 0.5), index, index)
    boxes = set()
    for image in stamped:
        rows, columns = (image != 0.5).any(0).nonzero(as_tuple=True)
        boxes.add((int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())))
    assert boxes == {(26, 30, 26, 30), (1, 13, 18, 30), (1, 30, 1, 30), (21, 28, 21, 28)}


def test_test_images_carry_opaque_patches():
    index = torch.arange(2)
    light, dark = (AdapPatch().stamp_test(torch.full((2, 3, 32, 32), level), index, index) for level in (1.0, 0.0))
    covered = (light == dark).all(1)[0]
    assert covered[21:29, 21:29].all()
    assert int(covered.sum()) - 64 == pytest.approx(3.14159 * 6.5**2, rel=0.06)


@pytest.mark.parametrize("patches", ["all", "corners+tile", "disc+square"])
@pytest.mark.parametrize("shape", [(1, 16, 16), (1, 28, 28), (3, 128, 128), (3, 32, 48)])
def test_sizes(shape, patches):
    images = torch.full((3, *shape), 0.5)
    attack, index = AdapPatch(test_patches=patches), torch.arange(3)
    for stamped in (attack.stamp(images, index, index), attack.stamp_test(images, index, index)):
        assert stamped.shape == images.shape
        assert bool(((stamped >= 0) & (stamped <= 1)).all())
        assert bool((stamped != images).flatten(1).any(1).all())


@BOTH
def test_chunks_do_not_matter(cls):
    images, index = (
        torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.tensor([9, 3, 8, 1, 0, 7]),
    )
    before = images.clone()
    attack = cls()
    for stamp in (attack.stamp, attack.stamp_cover, attack.stamp_test):
        whole = stamp(images, index, index)
        assert torch.equal(whole, torch.cat([stamp(images[i : i + 2], index[i : i + 2], index) for i in (0, 2, 4)]))
    assert torch.equal(images, before)


@BOTH
def test_poison_and_covers(cls, blobs, tiny):
    clean = blobs(200, channels=3, height=32, width=32)
    attack = cls(target=1).prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))
    planted = poison(clean, attack, rate=0.05, generator=torch.Generator().manual_seed(0))
    assert int(planted.poison.sum()) == 10
    assert int(planted.cover.sum()) == (10 if cls is AdapBlend else 20)
    assert torch.equal(planted.observed.labels[planted.cover], clean.labels[planted.cover])
    changed = (planted.observed.images != clean.images).flatten(1).any(1)
    assert torch.equal(changed, planted.poison | planted.cover)


@pytest.mark.parametrize(
    ("cls", "params", "words"),
    [
        (AdapBlend, {"alpha": 0}, "alpha: "),
        (AdapBlend, {"test_alpha": 1.1}, "test_alpha: "),
        (AdapBlend, {"pieces": 0}, "pieces: "),
        (AdapBlend, {"kept": 17}, r"kept: must be in 1\.\.16"),
        (AdapBlend, {"cover_ratio": -1}, "cover_ratio: "),
        (AdapPatch, {"opacity": 3}, "opacity: "),
        (AdapPatch, {"test_opacity": 0}, "test_opacity: "),
        (AdapPatch, {"cover_ratio": -1}, "cover_ratio: "),
    ],
)
def test_bad_values(cls, params, words):
    with pytest.raises(ConfigError, match=words):
        cls(**params)


def test_what_does_not_fit_the_images(blobs, tiny):
    clean = blobs(20, height=12, width=12)
    for attack, words in (
        (AdapPatch(), "at least 16 pixels"),
        (AdapBlend(pieces=20), "20 cells"),
        (AdapBlend(pattern="nowhere.png"), "no picture at nowhere.png"),
    ):
        with pytest.raises(PoisonError, match=words):
            attack.prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))
