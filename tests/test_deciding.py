"""Decisions fed back: what is dropped stays out, what is kept is not flagged again, labels are as a person says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from end_to_end import FAST, Finished, invoke, write_folder

import antibackdoor
from antibackdoor.attacks import BadNets, poison
from antibackdoor.deciding import decide, follow, spared
from antibackdoor.decisions import Decision, decisions_digest, read_decisions, write_decisions
from antibackdoor.errors import DataError
from antibackdoor.types import Isolation

SHARE = (*FAST, "--set", "defence.share=0.2", "--quiet")


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def refused(done: Finished, *named: str) -> None:
    assert done.code == 2, done
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(name in done.err for name in named), done.err


@pytest.fixture(scope="module")
def fed_back(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Decision]]:
    """A set, a scan of it, decisions on four images, and a training that was told of them; not to be changed."""
    root = tmp_path_factory.mktemp("decided")
    write_folder(root / "set" / "train", 12)
    write_folder(root / "set" / "test", 2, seed=1)
    assert invoke("scan", root / "set", "--out", root / "first", *SHARE).code == 0
    rows = rows_of(root / "first" / "suspects.csv")
    flagged = [name for name, row in rows.items() if row["flagged"] == "1"]
    calm = [name for name, row in rows.items() if row["flagged"] == "0"]
    other = {"cat": "dog", "dog": "owl", "owl": "cat"}
    made = [
        Decision(flagged[0], "keep", who="ann"),
        Decision(flagged[1], "drop"),
        Decision(flagged[2], "unsure"),
        Decision(calm[0], "relabel", label=other[rows[calm[0]]["label"]]),
    ]
    write_decisions(root / "d.csv", made)
    done = invoke("train", root / "set", "--out", root / "run", "--decisions", root / "d.csv", *SHARE)
    assert done.code == 0, done
    return root, made


def test_a_training_follows_decisions_and_records_them(fed_back: tuple[Path, list[Decision]]) -> None:
    root, made = fed_back
    keep, drop, unsure, relabel = made
    before, after = (rows_of(root / run / "suspects.csv") for run in ("first", "run"))
    assert set(before) - set(after) == {drop.id}
    assert after[keep.id]["flagged"] == "0"
    assert after[relabel.id] == {**after[relabel.id], "label": relabel.label, "flagged": "0"}
    assert unsure.id in after
    record = json.loads((root / "run" / "run.json").read_text(encoding="utf-8"))
    told = record["data"]["decisions"]
    assert told == {"digest": decisions_digest(made), "keep": 1, "drop": 1, "relabel": 1, "unsure": 1, "absent": 0}
    assert record["config"]["data"]["decisions"] == str(root / "d.csv")
    assert any("A person decided on 4 images" in sentence for sentence in record["evidence"])
    decided = read_decisions(root / "run" / "decided.csv")
    assert [(one.id, one.decision, one.who) for one in decided] == [(one.id, one.decision, one.who) for one in made]
    assert decided[1].label == before[drop.id]["label"]
    done = invoke("verify", root / "run")
    assert done.code == 0
    assert "decided.csv" in done.out


def test_a_run_is_resumed_with_the_same_decisions_only(fed_back: tuple[Path, list[Decision]], tmp_path: Path) -> None:
    root, made = fed_back
    args = ("scan", root / "set", "--out", tmp_path / "run", "--decisions", tmp_path / "d.csv", *SHARE)
    write_decisions(tmp_path / "d.csv", made)
    assert invoke(*args).code == 0
    assert invoke(*args, "--resume").code == 0
    write_decisions(tmp_path / "d.csv", [made[0]])
    refused(invoke(*args, "--resume"), "decisions")


def test_what_was_dropped_before_goes_into_the_quarantine(
    fed_back: tuple[Path, list[Decision]], tmp_path: Path
) -> None:
    root, made = fed_back
    keep, drop, _, relabel = made
    done = invoke("export", root / "run", tmp_path / "out", "--quiet")
    assert done.code == 0, done
    found = rows_of(tmp_path / "out" / "images.csv")
    assert set(found) == set(rows_of(root / "first" / "suspects.csv"))
    assert found[drop.id] == {**found[drop.id], "suspect": "1", "score": "", "decision": "drop", "class_verdict": ""}
    assert found[drop.id]["file"] == f"quarantine/{drop.id}"
    assert (found[keep.id]["file"], found[keep.id]["decision"]) == (f"clean/{keep.id}", "keep")
    moved = found[relabel.id]["file"]
    assert moved.startswith(f"clean/train/{relabel.label}/")
    assert "~" in moved
    for name, row in found.items():
        assert (tmp_path / "out" / row["file"]).read_bytes() == (root / "set" / name).read_bytes()
    # The same decisions go with the cleaned set, in which the dropped image is no more.
    again = ("--decisions", root / "d.csv", "--out", tmp_path / "again")
    done = invoke("scan", tmp_path / "out" / "clean.csv", *again, *SHARE)
    assert done.code == 0, done
    record = json.loads((tmp_path / "again" / "run.json").read_text(encoding="utf-8"))
    assert record["data"]["decisions"]["absent"] == 1 + (found[made[2].id]["suspect"] == "1")
    # A later decision goes before an earlier one.
    write_decisions(tmp_path / "later.csv", [Decision(drop.id, "keep")])
    assert (
        invoke("export", root / "run", tmp_path / "l.csv", "--to", "csv", "--decisions", tmp_path / "later.csv").code
        == 0
    )
    assert rows_of(tmp_path / "l.csv")[drop.id]["suspect"] == "0"


def test_wrong_decisions_are_one_line(fed_back: tuple[Path, list[Decision]], tmp_path: Path) -> None:
    root, made = fed_back
    args = ("train", root / "set", "--out", tmp_path / "run", "--decisions", tmp_path / "d.csv", *SHARE)
    refused(invoke(*args), str(tmp_path / "d.csv"))
    wrong = {
        "no image of the set has the id 'cat/000.png'": [made[0], Decision("cat/000.png", "keep")],
        "(1 of 1 decisions name none)": [Decision("train/cat/999.png", "drop")],
        "unknown label 'cow'": [Decision(made[0].id, "relabel", label="cow")],
        "too little to train on": [Decision(f"train/cat/{row:03d}.png", "drop") for row in range(11)],
    }
    for said, decisions in wrong.items():
        write_decisions(tmp_path / "d.csv", decisions)
        refused(invoke(*args), said, str(tmp_path / "d.csv"))
    assert not (tmp_path / "run" / "run.json").exists()


def test_from_python(blobs, tmp_path: Path) -> None:
    data = blobs(60, 3, height=12, width=12)
    write_decisions(tmp_path / "d.csv", [Decision("blobs/00003", "drop"), Decision("blobs/00004", "relabel", "c02")])
    settings = {"train": {"epochs": 1, "batch_size": 16}}
    run = antibackdoor.scan(
        data, model="wrn-10-1", defence="none", decisions=tmp_path / "d.csv", device="cpu", settings=settings
    )
    assert len(run.data) == 59
    assert run.data.classes[int(run.data.labels[run.data.ids.index("blobs/00004")])] == "c02"
    assert run.record.config["data"]["decisions"] == str(tmp_path / "d.csv")  # type: ignore[index, call-overload]


def test_following_decisions(blobs, tmp_path: Path) -> None:
    data = blobs(30, 3, height=8, width=8)
    made = [
        Decision("blobs/00000", "drop"),
        Decision("blobs/00001", "keep"),
        Decision("blobs/00002", "relabel", "c00"),
        Decision("blobs/00003", "unsure"),
        Decision("gone", "drop"),
    ]
    found = follow(data, made, Path("d.csv"))
    assert found.rows.tolist() == list(range(1, 30))
    assert torch.equal(found.data.images, data.images[1:])
    assert found.data.vouched is not None
    assert found.data.vouched.nonzero().flatten().tolist() == [0, 1]
    assert found.data.labels[:3].tolist() == [1, 0, 0]
    assert found.absent == 1
    assert [one.label for one in found.decisions] == ["c00", "c01", "c00", "c00", ""]
    write_decisions(tmp_path / "d.csv", made)
    assert torch.equal(decide(data, tmp_path / "d.csv").data.labels, found.data.labels)
    with pytest.raises(DataError, match="leaves too little"):
        follow(data, [Decision(name, "drop") for name in data.ids[::3]], Path("d.csv"))


def test_poison_with_its_first_label_is_cover(blobs) -> None:
    data = blobs(30, 3, height=8, width=8)
    truth = poison(data, BadNets(target=1), rate=0.2, generator=torch.Generator().manual_seed(0))
    rows = truth.poison.nonzero().flatten().tolist()
    first = data.classes[int(truth.original_labels[rows[0]])]
    decided = follow(
        truth.observed, [Decision(data.ids[rows[0]], "relabel", first), Decision(data.ids[rows[1]], "drop")], Path()
    )
    left = decided.poisoned(truth)
    assert int(left.poison.sum()) == len(rows) - 2
    assert int(left.cover.sum()) == 1
    assert len(left.original_labels) == len(left.observed) == 29


def test_a_defence_that_knows_nothing_of_it_flags_nobody_who_is_vouched_for(blobs) -> None:
    data = follow(blobs(30, 3), [Decision("blobs/00001", "keep")], Path()).data
    flagged = torch.zeros(30, dtype=torch.bool)
    flagged[:2] = True
    found = spared(Isolation(torch.zeros(30), flagged, "poisoned"), data)
    assert found.flagged.nonzero().flatten().tolist() == [0]
    assert found.evidence == ("1 image more would be flagged if nobody vouched for them.",)
