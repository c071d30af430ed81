"""Principal components: those of the standardised images, without a copy of all of them in double precision."""

from __future__ import annotations

import numpy as np
import pytest

from antibackdoor.isolation import principal


@pytest.mark.parametrize("rows", [7, 8192])
def test_components_are_those_of_the_standardised_images(monkeypatch, rows):
    monkeypatch.setattr(principal, "_ROWS", rows)
    generator = np.random.default_rng(0)
    values = (generator.normal(size=(60, 9)) * generator.uniform(0.1, 50, 9) + 100).astype(np.float32)
    values[:, 3] = 5.0  # says nothing
    fitted = np.arange(60) % 3 > 0
    points = principal.principal_components(values, 4, fitted)
    own = np.delete(values.astype(np.float64), 3, 1)
    standard = (own - own[fitted].mean(0)) / own[fitted].std(0)
    _, _, axes = np.linalg.svd(standard[fitted] - standard[fitted].mean(0))
    expected = (standard - standard[fitted].mean(0)) @ axes[:4].T
    assert points.dtype == np.float64
    assert np.abs(points) == pytest.approx(np.abs(expected), abs=1e-6)


def test_where_nothing_varies_there_is_one_column_of_zeros():
    assert principal.principal_components(np.ones((5, 3), np.float32), 2).tolist() == [[0.0]] * 5
