"""Random numbers that belong to a row."""

from __future__ import annotations

import torch

from antibackdoor.ops import per_image
from antibackdoor.ops.per_image import uniform_of


def test_a_row_has_its_numbers_whatever_is_computed_with_it(monkeypatch):
    index = torch.tensor([7, 0, 123_456_789, 7])
    whole = uniform_of(index, 3, "a", (2, 5))
    assert whole.shape == (4, 2, 5)
    assert torch.equal(whole[0], whole[3])
    assert torch.equal(whole[1:2], uniform_of(index[1:2], 3, "a", (2, 5)))
    monkeypatch.setattr(per_image, "_PART", 1)
    assert torch.equal(whole, uniform_of(index, 3, "a", (2, 5)))


def test_rows_seeds_and_names_are_independent():
    index = torch.arange(2000)
    draws = [uniform_of(index, seed, name, (4,)).flatten() for seed, name in ((0, "a"), (1, "a"), (0, "b"))]
    table = torch.stack([*draws, draws[0].roll(1), draws[0].roll(4)])
    correlation = torch.corrcoef(table) - torch.eye(5)
    assert float(correlation.abs().max()) < 0.05


def test_the_numbers_are_uniform():
    draws = uniform_of(torch.arange(5000), 0, "a", (20,)).flatten()
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    counts = torch.histc(draws, 50, 0, 1)
    chi_squared = float(((counts - 2000) ** 2 / 2000).sum())
    assert 20 < chi_squared < 95  # 49 degrees of freedom: beyond once in some 10,000 draws
    assert uniform_of(torch.empty(0, dtype=torch.int64), 0, "a").shape == (0,)
