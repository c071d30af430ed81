"""Figures against committed ones: inside their spread or named, never silently missing."""

from __future__ import annotations

import pytest

from antibackdoor.benchmark import compare


def cell(seed, ca, asr=None, *, attack="badnets", ra=0.5, status="done"):
    names = {"data": "d", "attack": attack, "attack_label": attack, "rate": 0.1, "defence": "abl", "model": "m"}
    metrics = {"ca": ca, "asr": asr, "ra": ra} if status == "done" else None
    return {
        "cell": {**names, "defence_label": "abl", "seed": seed},
        "status": status,
        "error": None if status == "done" else {"type": "PoisonError", "message": "too many"},
        "metrics": metrics,
    }


def test_the_same_differs_in_nothing():
    cells = [cell(0, 0.9, 0.1), cell(1, 0.8, 0.2)]
    assert compare(cells, cells) == []
    # Order and seeds are no matter, means are.
    assert compare([cell(7, 0.85, 0.15)], cells) == []
    assert compare([], []) == []


@pytest.mark.parametrize(("ca", "lines"), [(0.92, 0), (0.8801, 0), (0.9201, 1), (0.8799, 1)])
def test_two_points_are_always_allowed(ca, lines):
    reference = [cell(seed, 0.9, 0.5) for seed in range(3)]
    assert len(compare([cell(0, ca, 0.5)], reference)) == lines


@pytest.mark.parametrize(("asr", "lines"), [(0.5 + 0.29, 0), (0.5 - 0.29, 0), (0.5 + 0.31, 1), (0.5 - 0.31, 1)])
def test_three_standard_deviations_are_allowed(asr, lines):
    reference = [cell(0, 0.9, 0.4), cell(1, 0.9, 0.5), cell(2, 0.9, 0.6)]  # mean 0.5, standard deviation 0.1
    assert len(compare([cell(0, 0.9, asr)], reference)) == lines


def test_a_line_says_which_figure_and_by_how_much():
    [line] = compare([cell(0, 0.9, 0.99)], [cell(0, 0.9, 0.5), cell(1, 0.9, 0.5)])
    assert line == "d badnets@0.1 abl m: attack success 99.0 % (n 1), reference 50.0 ± 2.0 % (n 2)"


def test_what_is_missing_or_failed_is_named():
    reference = [cell(0, 0.9, 0.1), cell(0, 0.9, 0.1, attack="blend")]
    assert compare([cell(0, 0.9, 0.1)], reference) == ["d blend@0.1 abl m: in the reference, but not here"]
    assert compare(reference, reference[:1]) == ["d blend@0.1 abl m: not in the reference"]
    assert compare([cell(0, 0.9, 0.1), cell(1, 0, status="failed")], reference[:1]) == [
        "d badnets@0.1 abl m: failed: PoisonError: too many"
    ]
    assert compare([cell(0, 0.9)], reference[:1]) == ["d badnets@0.1 abl m: attack success was not measured here"]
    assert compare(reference[:1], [cell(0, 0.9)]) == ["d badnets@0.1 abl m: attack success is not in the reference"]
