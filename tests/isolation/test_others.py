"""Which images of other classes a class is compared with."""

from __future__ import annotations

import numpy as np
import pytest

from antibackdoor.isolation import others


@pytest.mark.parametrize(("most", "rows"), [(4, [0, 2, 5, 7]), (3, [0, 4, 7]), (100, [0, 1, 2, 4, 5, 6, 7, 8])])
def test_a_class_is_compared_with_so_many_others_at_most_evenly_spread(monkeypatch, most, rows):
    monkeypatch.setattr(others, "_MOST", most)
    of_class, known = np.arange(10) == 3, np.arange(10) != 9
    assert np.flatnonzero(others.images_of_others(of_class, known)).tolist() == rows
