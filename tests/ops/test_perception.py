"""Measures of likeness and of style, against slow transcriptions."""

from __future__ import annotations

import pytest
import torch

from antibackdoor.ops.perception import gram, per_image_distance, round_through, ssim, total_variation
from antibackdoor.ops.styles import sunsets


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def slow_ssim(first: torch.Tensor, second: torch.Tensor, side: int) -> float:
    values = []
    for channel in range(first.shape[0]):
        for top in range(first.shape[1] - side + 1):
            for left in range(first.shape[2] - side + 1):
                a = first[channel, top : top + side, left : left + side].double()
                b = second[channel, top : top + side, left : left + side].double()
                cov = ((a - a.mean()) * (b - b.mean())).mean()
                var_a, var_b = a.var(unbiased=False), b.var(unbiased=False)
                luminance = (2 * a.mean() * b.mean() + 1e-4) / (a.mean() ** 2 + b.mean() ** 2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (var_a + var_b + 9e-4))
    return float(torch.stack(values).mean())


def test_ssim_is_the_formula():
    first, second = random(2, 3, 12, 14), random(2, 3, 12, 14, seed=1)
    for window in (7, 11):
        expected = torch.tensor([slow_ssim(a, b, window) for a, b in zip(first, second, strict=True)])
        torch.testing.assert_close(ssim(first, second, window=window), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(ssim(first, first), torch.ones(2))
    assert ssim(first[:, :, :5], second[:, :, :5]).shape == (2,)


def test_gram_is_the_mean_product_of_channels():
    maps = random(2, 3, 4, 5)
    for n in range(2):
        for i in range(3):
            for j in range(3):
                expected = sum(float(maps[n, i, y, x] * maps[n, j, y, x]) for y in range(4) for x in range(5)) / 20
                assert float(gram(maps)[n, i, j]) == pytest.approx(expected, rel=1e-5)


def test_distance_of_each_pair():
    first, second = random(3, 2, 4, 4), random(3, 2, 4, 4, seed=1)
    expected = [((a - b) ** 2).mean().sqrt() for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(per_image_distance(first, second), torch.stack(expected))
    same = first.requires_grad_(True)
    per_image_distance(same, same.detach()).sum().backward()
    assert torch.isfinite(same.grad).all()


def test_rounding_lets_gradients_through():
    values = torch.tensor([-0.2, 0.1004, 0.5, 1.3], requires_grad=True)
    rounded = round_through(values)
    assert torch.equal(rounded.detach().mul(255), torch.tensor([0.0, 26.0, 128.0, 255.0]))
    rounded.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 0]
    assert total_variation(torch.zeros(1, 1, 4, 4)) == 0


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 32, 48), (3, 128, 128)])
def test_sunsets(shape):
    pictures = sunsets(6, shape, torch.Generator().manual_seed(3))
    assert pictures.shape == (6, *shape)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    assert torch.equal(pictures, sunsets(6, shape, torch.Generator().manual_seed(3)))
    assert not torch.equal(pictures, sunsets(6, shape, torch.Generator().manual_seed(4)))
    assert not torch.equal(pictures[0], pictures[1])
    sky, ground = pictures[:, :, : shape[1] // 2].mean(), pictures[:, :, -shape[1] // 16 :].mean()
    assert sky > ground + 0.1
    if shape[0] == 3:
        middle = pictures[:, :, shape[1] // 2]
        assert middle[:, 0].mean() > middle[:, 2].mean() + 0.1, "near the horizon it is orange"
