from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from antibackdoor.errors import StorageError
from antibackdoor.report import StoredRun, render
from antibackdoor.report.charts import flag_groups, loss_band, phase_spans, phases_fit, truth_groups
from antibackdoor.report.tables import class_rows, duration, grouped, metric_rows, number, percent
from antibackdoor.types import Finding, Metrics

Make = Callable[..., StoredRun]
N, K = 200, 4


def test_classes_are_sorted_by_flags(make: Make) -> None:
    labels = np.repeat([0, 1, 2], [50, 100, 50])
    flagged = np.zeros(N, dtype=np.bool_)
    flagged[[50, 51, 52, 150]] = True
    rows = class_rows(make(labels=labels, flagged=flagged))
    assert [(row.name, row.images, row.flagged, row.share) for row in rows] == [
        ("c1", 100, 3, 0.03),
        ("c2", 50, 1, 0.02),
        ("c0", 50, 0, 0.0),
        ("c3", 0, 0, 0.0),
    ]


def test_classes_in_doubt_are_marked_and_stand_before_the_others(make: Make) -> None:
    flagged = np.zeros(N, dtype=np.bool_)
    flagged[1] = True
    view = make(flagged=flagged, doubtful=(3,), record={"verdict": "undecided"})
    assert [(row.name, row.doubtful) for row in class_rows(view)] == [
        ("c1", False),
        ("c3", True),
        ("c0", False),
        ("c2", False),
    ]
    page = render(view)
    assert "<bdi>c3</bdi> <span" in page
    shown = [int(view.labels[row]) for row in view.gallery_index if not view.flagged[row]]
    assert page.count("class in doubt</span>") == shown.count(3)
    # Where all are, a mark would tell nothing.
    assert "in doubt</span>" not in render(make(doubtful=(0, 1, 2, 3)))


def test_what_was_found_is_shown_in_figures(make: Make) -> None:
    found = Finding(2, "in doubt", "origin", 31, 0.034, {"origin": 7.125, "picture": 2.0}, source=1)
    plain = make()
    assert plain.record.data is not None
    assert 'id="found"' not in render(plain)
    data = {**plain.record.data, "findings": [found.to_json(plain.classes)]}
    page = render(make(record={"data": data}))
    assert "<td>in doubt</td>" in page
    assert "origin 7.12, picture 2.00" in page
    assert '<td class="number">0.034</td>' in page
    # Of a record that was changed by hand nothing is shown.
    assert 'id="found"' not in render(make(record={"data": {**data, "findings": [{"label": "c2"}]}}))


def test_threshold_is_named_only_where_one_explains_the_flags(make: Make) -> None:
    view = make()
    assert view.threshold == pytest.approx(float(view.scores[view.flagged].min()))
    flagged = view.flagged.copy()
    flagged[np.argmin(view.scores)] = True
    mixed = dataclasses.replace(view, flagged=flagged)
    assert mixed.threshold is None
    assert "One threshold does not explain the flags" in render(mixed)


def test_loss_band_is_percentiles_of_the_members() -> None:
    losses = np.array([[1, 2, 3, 100], [np.nan, 5, np.inf, 1], [np.nan] * 4], dtype=np.float32)
    band = loss_band(losses, np.array([True, True, True, False]))
    np.testing.assert_allclose(band.middle, [2, 5, np.nan])
    np.testing.assert_allclose(band.low, [1.2, 5, np.nan])
    np.testing.assert_allclose(band.high, [2.8, 5, np.nan])


def test_groups_cover_every_image_once(make: Make) -> None:
    cover = np.zeros(N, dtype=np.bool_)
    cover[15:30] = True  # overlaps poison, which then counts as poison
    view = make(cover=cover)
    for groups in (flag_groups(view), truth_groups(view)):
        assert (sum(group.members.astype(int) for group in groups) == 1).all()
    assert truth_groups(make(poison=None)) == ()


def test_phases_are_named_or_numbered(make: Make) -> None:
    assert phase_spans(("a", "a", "b", "a")) == (("a", 1, 2), ("b", 3, 3), ("a", 4, 4))
    assert phases_fit(("isolate",) * 20 + ("retrain",) * 20)
    rounds = tuple(f"round {i} of many" for i in range(20))
    assert not phases_fit(rounds)
    assert not phases_fit(("訓練",) * 40)
    page = render(make(phases=("a rather long name",) + ("訓練",) * 5))
    assert "Phases: 1 a rather long name, 2 訓練." in page


def test_numbers_in_words() -> None:
    assert [percent(x) for x in (0.0, 0.0001, 0.8612, 0.9999, 1.0)] == [
        "0.0 %",
        "< 0.1 %",
        "86.1 %",
        "> 99.9 %",
        "100.0 %",
    ]
    assert [duration(x) for x in (3.21, 59.99, 60.0, 3725.0)] == [
        "3.2 s",
        "1 min 0 s",
        "1 min 0 s",
        "1 h 2 min",
    ]
    assert [grouped(1, "class", "classes"), grouped(2000, "image"), grouped(0)] == [
        "1 class",
        "2,000 images",
        "0",
    ]
    assert [number(x) for x in (5.2, -0.5, 1234.0, float("nan"))] == ["5.200", "−0.5000", "1234", "none"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": np.zeros(3, dtype=np.float32)}, "scores has shape"),
        ({"poison": np.zeros(3, dtype=np.bool_)}, "poison has shape"),
        ({"phases": ("one",)}, "losses has shape"),
        ({"labels": np.full(N, K)}, "labels spans"),
        ({"gallery_index": np.arange(4)}, "gallery has shape"),
        ({"gallery_index": np.arange(5) + N}, "gallery_index spans"),
        ({"gallery": np.zeros((5, 8, 8, 2), dtype=np.uint8)}, "1 or 3 channels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StorageError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"n_triggered": 18, "n_test": 20, "n_test_target": 2}, "of 18 triggered images of non-target classes"),
        ({"n_triggered": 18}, "of 18 triggered images of non-target classes"),
        ({"n_triggered": 20, "n_test": 20}, "of 20 triggered images, every test image"),
    ],
)
def test_what_attack_success_is_of(counts: dict[str, int], words: str) -> None:
    metrics = Metrics(asr=0.5, ra=0.5, **counts)
    assert [row.of for row in metric_rows(metrics)] == [words, words]
