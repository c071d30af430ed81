"""``compare``: which images of two runs are the same, and what is said of those that changed."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from end_to_end import FAST, invoke, write_npz

from antibackdoor.comparing import FIGURES, Changed, changes_csv, compare_runs, since
from antibackdoor.report.tables import metric_rows
from antibackdoor.storage import load_run
from antibackdoor.stored import StoredRun
from antibackdoor.types import Metrics

Change = Callable[..., StoredRun]


@pytest.fixture(scope="module")
def change(finished_run: Path) -> Change:
    """Gives a run of 24 images in 3 classes, the first 2 flagged; keywords replace its parts, ``keep`` takes rows."""
    stored = load_run(finished_run)
    flagged = np.arange(len(stored.ids)) < 2

    def make(*, keep: list[int] | None = None, record: dict[str, Any] | None = None, **parts: Any) -> StoredRun:
        values: dict[str, Any] = {
            "ids": list(stored.ids),
            "labels": stored.labels.copy(),
            "scores": stored.scores.copy(),
            "flagged": flagged.copy(),
            "content": None if stored.content is None else stored.content.copy(),
            "seen": None if stored.seen is None else stored.seen.copy(),
        } | parts
        rows = list(range(len(stored.ids))) if keep is None else keep
        values = {
            name: part if part is None else [part[row] for row in rows] if name == "ids" else part[rows]
            for name, part in values.items()
        }
        return dataclasses.replace(
            stored,
            **values | {"ids": tuple(values["ids"])},
            losses=stored.losses[:, rows],
            gallery_index=stored.gallery_index[:0],
            gallery=stored.gallery[:0],
            record=dataclasses.replace(stored.record, **(record or {})),
        )

    return make


def test_what_is_new_since_a_run(change: Change) -> None:
    before, nobody = change(), np.zeros(24, dtype=bool)
    assert not since(change(), before, "last").flagged.any()
    flagged = np.arange(24) < 4
    found = since(change(flagged=flagged), before, "last")
    assert found.flagged.nonzero()[0].tolist() == [2, 3]
    assert found.record.verdict == before.record.verdict
    assert found.record.evidence[0].startswith("New since last: 2 flagged images; 2 more were flagged there already")
    renamed = change(flagged=flagged, ids=[f"other/{row}" for row in range(24)])
    assert since(renamed, before, "last").flagged.nonzero()[0].tolist() == [2, 3]
    assert since(renamed, change(flagged=nobody), "last").flagged.sum() == 4


def test_a_run_beside_itself_has_not_changed(change: Change) -> None:
    found = compare_runs(change(), change())
    assert (found.both, found.suspects, found.changed) == (24, 2, ())
    assert (found.renamed, found.redrawn, found.relabelled) == (0, 0, 0)
    assert (found.settings, found.versions) == ((), ())
    assert found.verdicts[0] == found.verdicts[1]


def test_suspects_that_are_new_that_are_no_longer_and_that_were_left_out(change: Change) -> None:
    after = change(keep=[row for row in range(24) if row != 0], flagged=np.arange(24) == 5)
    found = compare_runs(change(), after)
    ids, names = change().ids, change().classes
    label = [names[row % 3] for row in range(24)]
    assert found.changed == (
        Changed(ids[5], label[5], "new suspect"),
        Changed(ids[1], label[1], "no longer suspect"),
        Changed(ids[0], label[0], "suspect left out"),
    )
    assert (found.both, found.suspects) == (23, 0)


def test_an_image_is_the_same_whatever_it_is_called(change: Change) -> None:
    # Every later image moves up by a number, as in a .npz without its first row.
    before = change()
    after = change(keep=list(range(1, 24)))
    after = dataclasses.replace(after, ids=before.ids[:23])
    found = compare_runs(before, after)
    assert (found.both, found.renamed, found.redrawn) == (23, 23, 0)
    assert [(entry.id, entry.change) for entry in found.changed] == [(before.ids[0], "suspect left out")]


def test_without_content_the_id_tells(change: Change) -> None:
    before, after = change(content=None), change()
    ids = list(before.ids)
    ids[3] = "renamed"
    after = dataclasses.replace(after, ids=tuple(ids))
    found = compare_runs(before, after)
    assert (found.both, found.renamed, found.redrawn) == (23, 0, 0)
    assert {entry.change for entry in found.changed} == {"added", "left out"}
    assert [entry.added for entry in found.changed] == [True, False]


def test_images_with_other_pixels_or_another_class_are_counted(change: Change) -> None:
    content, labels = change().content, change().labels.copy()
    assert content is not None
    content = content.copy()
    content[7] = 0
    labels[9] = (labels[9] + 1) % 3
    found = compare_runs(change(), change(content=content, labels=labels))
    assert (found.both, found.redrawn, found.relabelled) == (24, 1, 1)
    (entry,) = found.changed
    assert entry.change == "relabelled"
    assert entry.before == f"{entry.id} ({change().classes[change().labels[9]]})"


def test_copies_are_told_apart_by_their_ids(change: Change) -> None:
    content = change().content
    assert content is not None
    content = np.broadcast_to(content[:1], content.shape)
    order = list(reversed(range(24)))
    found = compare_runs(change(content=content), change(content=content, keep=order))
    assert (found.both, found.renamed, found.changed) == (24, 0, ())


def test_figures_settings_and_versions_stand_side_by_side(change: Change) -> None:
    before = change(record={"metrics": Metrics(ca=0.9, asr=0.5), "config": {"a": {"x": 1, "y": 2}, "b": 1}})
    after = change(
        record={
            "metrics": Metrics(ca=0.875, recall=1.0),
            "config": {"a": {"x": 1, "y": 3}, "c": [1]},
            "versions": before.record.versions | {"torch": "9"},
            "verdict": "poisoned",
        }
    )
    found = compare_runs(before, after)
    assert found.figures == (
        ("Clean accuracy", "90.0 %", "87.5 %", "-2.5 points"),
        ("Attack success", "50.0 %", "-", ""),
        ("Recall", "-", "100.0 %", ""),
    )
    assert found.settings == (("a.y", 2, 3), ("b", 1, "not there"), ("c", "not there", [1]))
    assert found.versions == (("torch", before.record.versions["torch"], "9"),)
    assert found.verdicts[1] == "poisoned"


def test_every_figure_of_a_record_is_compared() -> None:
    every = Metrics(**dict.fromkeys(FIGURES.values(), 0.5))
    assert [row.name for row in metric_rows(every)] == list(FIGURES)


def test_changes_as_a_table(change: Change) -> None:
    rows = list(csv.DictReader(changes_csv(compare_runs(change(), change(keep=list(range(1, 24))))).splitlines()))
    assert [(row["change"], row["before"]) for row in rows] == [("suspect left out", "")]


def test_the_command_compares_two_folders(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (0, 3):
        write_npz(tmp_path / "d.npz", 8, seed=seed)
        done = invoke("scan", "d.npz", "--out", f"run{seed}", *FAST, "--seed", seed, "--quiet")
        assert done.code == 0, done
    done = invoke("compare", "run0", "run3", "--out", "changes.csv")
    assert done.code == 0, done
    shown = {line.split("  ")[0]: line for line in done.out.splitlines()}
    assert "0 only in the first" in shown["images"]
    assert "24 with other pixels" in shown["images"]
    assert shown["seed"].endswith("0 -> 3")
    assert (tmp_path / "changes.csv").read_text(encoding="utf-8").startswith("change,id,label,before\n")
    refused = invoke("compare", finished_run, tmp_path)
    assert (refused.code, len(refused.err.splitlines())) == (2, 1)


def test_a_damaged_run_is_refused(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "history.npz").write_bytes(b"")
    done = invoke("compare", finished_run, tmp_path / "run")
    assert done.code == 2
    assert "history.npz" in done.err


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_of_a_run_are_for_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "d.npz", 4)
    before = os.umask(mask)
    try:
        assert invoke("train", npz, "--out", tmp_path / "run", *FAST, "--quiet").code == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"model.safetensors", "run.json", "suspects.csv", "isolate.safetensors"}
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {oct(0o666 & ~mask)}
