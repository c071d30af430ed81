"""Figures against committed ones: inside their spread or named, never silently missing."""

from __future__ import annotations

import pytest

from antibackdoor.benchmark import compare


def cell(seed, ca, asr=None, *, attack="badnets", ra=0.5, status="done", verdict="poisoned", epochs=9, **figures):
    names = {"data": "d", "attack": attack, "attack_label": attack, "rate": 0.1, "defence": "abl", "model": "m"}
    metrics = {"ca": ca, "asr": asr, "ra": ra, **figures} if status == "done" else None
    return {
        "cell": {**names, "defence_label": "abl", "seed": seed},
        "status": status,
        "error": None if status == "done" else {"type": "PoisonError", "message": "too many"},
        "metrics": metrics,
        "verdict": verdict,
        "config": {"seed": seed, "device": "cpu", "train": {"epochs": epochs}},
    }


def test_the_same_differs_in_nothing():
    cells = [cell(0, 0.9, 0.1), cell(1, 0.8, 0.2)]
    assert compare(cells, cells) == []
    assert compare(cells[::-1], cells) == []
    assert compare([], []) == []


@pytest.mark.parametrize(("ca", "lines"), [(0.92, 0), (0.8801, 0), (0.9201, 1), (0.8799, 1)])
def test_two_points_are_always_allowed(ca, lines):
    reference = [cell(seed, 0.9, 0.5) for seed in range(3)]
    assert len(compare([cell(seed, ca, 0.5) for seed in range(3)], reference)) == lines


@pytest.mark.parametrize(("asr", "lines"), [(0.5 + 0.14, 0), (0.5 - 0.14, 0), (0.5 + 0.16, 1), (0.5 - 0.16, 1)])
def test_three_standard_deviations_are_allowed(asr, lines):
    reference = [cell(0, 0.9, 0.45), cell(1, 0.9, 0.5), cell(2, 0.9, 0.55)]  # mean 0.5, standard deviation 0.05
    assert len(compare([cell(seed, 0.9, asr) for seed in range(3)], reference)) == lines


@pytest.mark.parametrize(
    ("name", "most"), [("ca", 0.05), ("asr", 0.2), ("ra", 0.2), ("precision", 0.2), ("recall", 0.2), ("fpr", 0.05)]
)
def test_a_wide_spread_does_not_excuse_everything(name, most):
    def cells(*values):
        return [cell(seed, **{"ca": 0.5, "asr": 0.5, name: value}) for seed, value in enumerate(values)]

    reference = cells(0.2, 0.5, 0.8)
    assert compare(cells(*3 * [0.5 + most - 0.01]), reference) == []
    assert len(compare(cells(*3 * [0.5 + most + 0.01]), reference)) == 1


@pytest.mark.parametrize(("ca", "lines"), [(0.949, 0), (0.951, 1)])
def test_one_seed_has_no_spread_and_five_points(ca, lines):
    assert len(compare([cell(0, ca, 0.5)], [cell(0, 0.9, 0.5)])) == lines


def test_seeds_settings_and_verdicts_are_those_of_the_reference():
    reference = [cell(0, 0.9, 0.1), cell(1, 0.9, 0.1)]
    assert compare([cell(1, 0.9, 0.1)], reference) == ["d badnets@0.1 abl m: seed 0: in the reference, but not here"]
    assert compare([cell(seed, 0.9, 0.1, epochs=99) for seed in (0, 1)], reference) == [
        "d badnets@0.1 abl m: train.epochs is 99, in the reference 9"
    ]
    assert compare([cell(0, 0.9, 0.1), cell(1, 0.9, 0.1, verdict="undecided")], reference) == [
        "d badnets@0.1 abl m: verdicts 'poisoned' 1x, 'undecided' 1x, reference 'poisoned' 2x"
    ]


def test_a_line_says_which_figure_and_by_how_much():
    [line] = compare([cell(0, 0.9, 0.99), cell(1, 0.9, 0.99)], [cell(0, 0.9, 0.5), cell(1, 0.9, 0.5)])
    assert line == "d badnets@0.1 abl m: attack success 99.0 % (n 2), reference 50.0 ± 2.0 % (n 2)"


def test_what_is_missing_or_failed_is_named():
    reference = [cell(0, 0.9, 0.1), cell(0, 0.9, 0.1, attack="blend")]
    assert compare([cell(0, 0.9, 0.1)], reference) == ["d blend@0.1 abl m: in the reference, but not here"]
    assert compare(reference, reference[:1]) == ["d blend@0.1 abl m: not in the reference"]
    assert compare([cell(0, 0.9, 0.1), cell(1, 0, status="failed")], reference[:1]) == [
        "d badnets@0.1 abl m: failed: PoisonError: too many"
    ]
    assert compare([cell(0, 0.9)], reference[:1]) == ["d badnets@0.1 abl m: attack success was not measured here"]
    assert compare(reference[:1], [cell(0, 0.9)]) == ["d badnets@0.1 abl m: attack success is not in the reference"]
