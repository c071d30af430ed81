"""The figures of visibility that ``benchmarks/attacks.py`` reports."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[2] / "benchmarks" / "attacks.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_attacks", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FILE.parent))  # where it stands when it is run
        spec.loader.exec_module(module)
    return module


def pair():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(2, 3, 8, 9, generator=generator)
    return one, (one + 0.1 * torch.randn(one.shape, generator=generator)).clamp(0, 1)


def slow_ssim(x, y):
    """Wang et al. 2004, one window a pixel, for one channel mirrored at its edges."""
    offsets = range(-5, 6)
    weights = torch.tensor([[math.exp(-(a * a + b * b) / 4.5) for b in offsets] for a in offsets], dtype=torch.float64)
    weights /= weights.sum()
    values = []
    height, width = x.shape
    x, y = (torch.nn.functional.pad(z[None, None], (5, 5, 5, 5), mode="reflect")[0, 0] for z in (x, y))
    for row in range(height):
        for column in range(width):
            p, q = (z[row : row + 11, column : column + 11].double() for z in (x, y))
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            cov = (weights * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
            values.append(float(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))))
    return sum(values) / len(values)


def test_ssim(benchmark):
    x, y = pair()
    expected = [sum(slow_ssim(x[n, c], y[n, c]) for c in range(3)) / 3 for n in range(2)]
    assert benchmark.ssim_of(x, y).tolist() == pytest.approx(expected, abs=1e-9)
    assert benchmark.ssim_of(x, x).tolist() == pytest.approx([1, 1])


def test_ssim_sees_a_patch_in_the_corner(benchmark):
    grey = torch.full((1, 1, 32, 32), 0.5)
    patched = grey.clone()
    patched[:, :, 29:, 29:] = 1
    assert float(benchmark.ssim_of(grey, patched)) < 0.97


def test_psnr(benchmark):
    black = torch.zeros(1, 1, 4, 4)
    assert float(benchmark.psnr_of(black, black + 0.1)) == pytest.approx(20, abs=1e-4)
    assert math.isinf(float(benchmark.psnr_of(black, black)))


def test_visibility_leaves_out_what_did_not_change(benchmark):
    clean = torch.full((3, 1, 16, 16), 100, dtype=torch.uint8)
    stamped = clean.clone()
    stamped[0, 0, 0, 0] = 90
    figures = benchmark.visibility(clean, stamped)
    assert (figures["linf"], figures["n_unchanged"]) == (10.0, 2)
    assert benchmark.visibility(clean, clean) == {"psnr": None, "ssim": None, "linf": None, "n_unchanged": 3}


def test_attacks_are_read_with_their_values(benchmark):
    choice = benchmark.read_attack("badnets:size=5,corner=all,pattern=white")
    assert (choice.name, choice.params) == ("badnets", {"size": 5, "corner": "all", "pattern": "white"})
    assert choice.rate == 0.1
    assert benchmark.read_attack("sig").rate == 0.08
    choice = benchmark.read_attack("sig@0.02:delta=10")
    assert (choice.name, choice.rate, choice.params) == ("sig", 0.02, {"delta": 10})
