"""WaNet: the formula pixel by pixel, and covers that carry another warp each."""

from __future__ import annotations

import math

import pytest
import torch

from antibackdoor.attacks.base import poison, triggered_test
from antibackdoor.attacks.wanet import WaNet
from antibackdoor.errors import ConfigError, PoisonError
from antibackdoor.ops.warp import control_field, identity_grid, warp
from antibackdoor.seeds import Seeds


def pictures(count=4, channels=3, height=12, width=16):
    return torch.rand((count, channels, height, width), generator=torch.Generator().manual_seed(1))


def slow_warp(images, shifts):
    """Equation 3 of the paper, one pixel at a time, for sides up to 32."""
    count, channels, height, width = images.shape
    result = torch.empty_like(images)
    for n, row, column in torch.cartesian_prod(torch.arange(count), torch.arange(height), torch.arange(width)).tolist():
        dx, dy = (shifts if shifts.ndim == 3 else shifts[n])[row, column].tolist()
        x = min(1.0, max(-1.0, -1 + 2 * column / (width - 1) + dx / width))
        y = min(1.0, max(-1.0, -1 + 2 * row / (height - 1) + dy / height))
        px, py = (x + 1) / 2 * (width - 1), (y + 1) / 2 * (height - 1)
        left, top = min(width - 2, math.floor(px)), min(height - 2, math.floor(py))
        a, b = px - left, py - top
        for c in range(channels):
            p = images[n, c]
            upper = (1 - a) * p[top, left] + a * p[top, left + 1]
            lower = (1 - a) * p[top + 1, left] + a * p[top + 1, left + 1]
            result[n, c, row, column] = (1 - b) * upper + b * lower
    return result


@pytest.mark.parametrize("per_image", [False, True])
def test_warp_is_the_formula(per_image):
    images = pictures(2)
    shape = (2, 12, 16, 2) if per_image else (12, 16, 2)
    shifts = torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 4 - 2
    assert torch.allclose(warp(images, shifts), slow_warp(images, shifts), atol=1e-5)


def test_no_shift_changes_nothing():
    images = pictures()
    assert torch.allclose(warp(images, torch.zeros(12, 16, 2)), images, atol=1e-5)
    assert identity_grid(3, 5)[0, -1].tolist() == [1, -1]


def test_the_field_has_control_points_of_mean_size_one_at_its_corners():
    points = torch.rand((1, 2, 4, 4), generator=torch.Generator().manual_seed(3)) * 2 - 1
    points /= points.abs().mean()
    field = control_field(4, 9, 11, torch.Generator().manual_seed(3))
    assert field.shape == (9, 11, 2)
    assert torch.allclose(field[0, 0], points[0, :, 0, 0], atol=1e-5)
    assert torch.allclose(field[-1, -1], points[0, :, -1, -1], atol=1e-5)


def test_a_larger_picture_is_bent_as_much_relative_to_its_side():
    def centre_of_shift(size):
        ramp = torch.linspace(0, 1, size).expand(1, 1, size, size).contiguous()
        return float((warp(ramp, torch.full((size, size, 2), 2.0)) - ramp)[0, 0, size // 2, size // 2])

    assert centre_of_shift(128) == pytest.approx(centre_of_shift(32), rel=1e-3)
    assert centre_of_shift(16) == pytest.approx(2 * centre_of_shift(32), rel=1e-3)  # half a pixel at least


def test_most_pixels_change_and_survive_rounding(blobs):
    data = blobs(20, noise=40.0, channels=3, height=32, width=32)
    stamped = WaNet().stamp(data.images.float() / 255, torch.arange(20), data.labels)
    assert float(((stamped * 255).round() != data.images).float().mean()) > 0.6


def test_covers_are_warped_each_in_its_own_way():
    attack, index = WaNet(pattern_seed=5), torch.tensor([3, 9])
    images = pictures(1).expand(2, -1, -1, -1)
    plain = attack.stamp(images, index, index)
    covers = attack.stamp_cover(images, index, index)
    assert torch.equal(plain[0], plain[1])
    assert not torch.equal(covers[0], covers[1])
    assert not torch.equal(covers[0], plain[0])
    assert not torch.equal(plain, WaNet(pattern_seed=6).stamp(images, index, index))


def test_chunks_do_not_matter():
    images, index = pictures(6), torch.tensor([50_000, 3, 8, 1, 0, 7])
    for stamp in (WaNet().stamp, WaNet().stamp_cover):
        whole = stamp(images, index, index)
        parts = [stamp(images[i : i + 2], index[i : i + 2], index[i : i + 2]) for i in (0, 2, 4)]
        assert torch.equal(whole, torch.cat(parts))


def test_poison_and_covers(blobs, tiny):
    clean = blobs(100)
    attack = WaNet(target=2, cover_ratio=2).prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))
    planted = poison(clean, attack, rate=0.1, generator=torch.Generator().manual_seed(0))
    assert (int(planted.poison.sum()), int(planted.cover.sum())) == (10, 20)
    assert not (planted.poison & planted.cover).any()
    assert (planted.observed.labels[planted.poison] == 2).all()
    assert torch.equal(planted.observed.labels[~planted.poison], clean.labels[~planted.poison])
    untouched = ~(planted.poison | planted.cover)
    assert torch.equal(planted.observed.images[untouched], clean.images[untouched])
    assert not (triggered_test(clean, attack).original_labels == 2).any()


@pytest.mark.parametrize(("params", "words"), [({"s": 0}, "s: "), ({"k": 1}, "k: "), ({"cover_ratio": -1}, "cover_")])
def test_bad_values(params, words):
    with pytest.raises(ConfigError, match=words):
        WaNet(**params)


def test_more_control_points_than_pixels(blobs, tiny):
    clean = blobs(20)
    with pytest.raises(PoisonError, match="64 control points"):
        WaNet(k=64).prepare(clean, build_model=tiny(clean), fit=None, seeds=Seeds(0))
