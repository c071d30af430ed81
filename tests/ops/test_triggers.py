from __future__ import annotations

import math

import pytest
import torch

from antibackdoor.ops.triggers import blend, grid_pattern, patch_at, sinusoid, sinusoid_wave, smooth_noise

SHAPES = [(2, 3, 9, 9), (2, 1, 8, 12)]


def pictures(shape, seed=0):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0.0, 1.0
    return images


def each_pixel(images, value):
    """The slow way: ``value(n, c, row, column, pixel)`` for every pixel."""
    result = torch.empty_like(images)
    for n, c, row, column in torch.cartesian_prod(*(torch.arange(size) for size in images.shape)).tolist():
        result[n, c, row, column] = value(n, c, row, column, float(images[n, c, row, column]))
    return result


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("channels", ["one", "all"])
@pytest.mark.parametrize("shape", SHAPES)
def test_patch(shape, channels, alpha):
    images = pictures(shape)
    before = images.clone()
    pattern = torch.rand((1 if channels == "one" else shape[1], 3, 4), generator=torch.Generator().manual_seed(1))
    top, left = 5, 2

    def value(n, c, row, column, pixel):
        if not (top <= row < top + 3 and left <= column < left + 4):
            return pixel
        ink = float(pattern[min(c, len(pattern) - 1), row - top, column - left])
        return (1 - alpha) * pixel + alpha * ink

    stamped = patch_at(images, pattern, top, left, alpha=alpha)
    assert torch.allclose(stamped, each_pixel(images, value), atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_blend(shape):
    images = pictures(shape)
    before = images.clone()
    pattern = torch.rand(shape[1:], generator=torch.Generator().manual_seed(1))
    mixed = blend(images, pattern, 0.2)
    expected = each_pixel(images, lambda n, c, row, column, x: 0.8 * x + 0.2 * float(pattern[c, row, column]))
    assert torch.allclose(mixed, expected, atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("delta", [20 / 255, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_sinusoid(shape, delta):
    images = pictures(shape)
    before = images.clone()
    waved = sinusoid(images, delta, 3)

    def value(n, c, row, column, pixel):
        return min(1.0, max(0.0, pixel + delta * math.sin(2 * math.pi * column * 3 / shape[3])))

    assert torch.allclose(waved, each_pixel(images, value), atol=1e-5)
    assert torch.equal(images, before)


def test_the_wave_has_whole_cycles():
    wave = sinusoid_wave(24, 6)
    assert wave.shape == (24,)
    assert torch.allclose(wave, torch.tensor([0.0, 1.0, 0.0, -1.0]).repeat(6), atol=1e-5)


@pytest.mark.parametrize("stamp", ["patch", "blend", "sinusoid"])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_the_range_is_kept_at_its_ends(stamp, level):
    images = torch.full((1, 3, 8, 8), level)
    white = torch.ones(3, 8, 8)
    result = {
        "patch": patch_at(images, white[:, :3, :3], 0, 0, alpha=0.7),
        "blend": blend(images, white, 0.2),
        "sinusoid": sinusoid(images, 0.9, 2),
    }[stamp]
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1 + 1e-6


def test_the_grid():
    expected = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    assert torch.equal(grid_pattern(3)[0], expected)
    assert torch.equal(grid_pattern(6)[0], expected.repeat_interleave(2, 0).repeat_interleave(2, 1))
    for size in (1, 2, 4, 5, 7):
        assert grid_pattern(size).shape == (1, size, size)
        assert set(grid_pattern(size).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("cells", [2, 8, 64])
@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 32, 48)])
def test_noise_fills_the_range_and_follows_its_generator(shape, cells):
    def noise(seed):
        return smooth_noise(shape, torch.Generator().manual_seed(seed), cells=cells)

    assert noise(0).shape == shape
    assert (float(noise(0).min()), float(noise(0).max())) == (0.0, 1.0)
    assert torch.equal(noise(0), noise(0))
    assert not torch.equal(noise(0), noise(1))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 1, 1)])
def test_noise_of_one_cell_is_numbers(shape):
    noise = smooth_noise(shape, torch.Generator().manual_seed(0), cells=1)
    assert noise.shape == shape
    assert bool(((noise >= 0) & (noise <= 1)).all())
    assert torch.allclose(noise, noise[:, :1, :1].expand(shape), atol=1e-5)


def test_fewer_cells_are_smoother():
    def roughness(cells):
        noise = smooth_noise((1, 32, 32), torch.Generator().manual_seed(0), cells=cells)
        return float((noise[:, :, 1:] - noise[:, :, :-1]).abs().mean())

    assert roughness(4) < roughness(8) < roughness(32)
