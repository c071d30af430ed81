"""decisions.csv: what is written is read, by hand or by a tool, and what is wrong is named."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antibackdoor.csvs import as_text, read_back
from antibackdoor.decisions import (
    Decision,
    append_decisions,
    check_decisions,
    decisions_digest,
    read_decisions,
    write_decisions,
)
from antibackdoor.errors import DataError, StorageError

DOC = (Path(__file__).parents[1] / "docs" / "decisions.md").read_text(encoding="utf-8")
ODD = ["=1+1/a.png", "'=x", "'plain", 'with "quotes", comma', "two\nlines.png", "é/ü.png", "-", "@cmd;|\t"]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    decisions = [Decision(name, "relabel", label=name, who="=who", when="2026") for name in ODD]
    write_decisions(path, decisions[:3])
    append_decisions(path, decisions[3:])
    assert read_decisions(path) == decisions
    cells = path.read_text(encoding="utf-8").split(",")
    assert not [cell for cell in cells if cell.strip('"\n').startswith(("=", "@", "+"))]
    assert [entry.name for entry in tmp_path.iterdir()] == ["decisions.csv"]


@given(st.text(alphabet="'=+-@\t\rab,"))
def test_no_name_is_lost_in_a_cell(name: str) -> None:
    assert read_back(as_text(name)) == name
    assert not as_text(name).startswith(("=", "+", "-", "@", "\t", "\r"))


def test_the_last_row_of_an_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    append_decisions(path, [Decision("a", "drop"), Decision("b", "keep"), Decision("a", "unsure")])
    append_decisions(path, [Decision("b", "drop")])
    assert read_decisions(path) == [Decision("a", "unsure"), Decision("b", "drop")]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.parametrize("before", [",", ";", "\t"])
def test_files_by_hand(before: str, tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    rows = [["note", "Decision", "id", "label", "when", "who"], ["x", "DROP", "a", "", "", ""], ["", "keep ", "b"]]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(before.join(row) for row in [*rows, []]).encode() + b"\r\n\r\n")
    assert read_decisions(path) == [Decision("a", "drop"), Decision("b", "keep")]
    append_decisions(path, [Decision("c", "relabel", "dog")])
    assert read_decisions(path)[-1] == Decision("c", "relabel", "dog")
    assert path.read_text(encoding="utf-8-sig").startswith(before.join(rows[0]))


def test_a_file_without_an_end_or_without_columns_is_added_to(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text("id,decision,label,who,when\na,drop,,,", encoding="utf-8")
    append_decisions(path, [Decision("b", "keep")])
    short = tmp_path / "short.csv"
    short.write_text("id,decision\na,drop", encoding="utf-8")
    append_decisions(short, [Decision("b", "keep", who="ann")])
    assert read_decisions(path) == [Decision("a", "drop"), Decision("b", "keep")]
    assert read_decisions(short) == [Decision("a", "drop"), Decision("b", "keep", who="ann")]


WRONG = {
    "line 3: unknown decision 'droop'. Did you mean 'drop'": "id,decision\na,keep\nb,droop\n",
    "line 2: 'a' is to be relabelled, but no label": "id,decision,label\na,relabel,\n",
    "line 2: a decision has no id": "id,decision\n,keep\n",
    "line 2: 3 cells in 2 columns": "id,decision\na,b,keep\n",
    "has no column 'decision'": "id,verdict\na,keep\n",
    "has no column 'id'": "",
    "has a column twice": "id,decision,id\na,keep,b\n",
    "not CSV": 'id,decision\n"a"b,keep\n',
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_files_are_named(said: str, tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    path.write_text(WRONG[said], encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        read_decisions(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    with pytest.raises(StorageError, match="no file of decisions"):
        read_decisions(path)
    with pytest.raises(StorageError, match="cannot read"):
        read_decisions(tmp_path)
    path.write_bytes("id,decision\né,keep\n".encode("latin-1"))
    with pytest.raises(DataError, match="not in UTF-8"):
        read_decisions(path)


def test_a_disk_that_is_full_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "decisions.csv"
    write_decisions(path, [Decision("a", "keep")])
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:5]))
    with pytest.raises(StorageError, match="No space left"):
        append_decisions(path, [Decision("b", "keep")])
    assert path.read_bytes() == whole


def test_decisions_are_of_the_images_of_a_set() -> None:
    ids, labels, path = ["train/cat/1.png", "train/dog/2.png"], ["cat", "dog"], Path("decisions.csv")
    good = [Decision("train/cat/1.png", "keep", "cat"), Decision("train/dog/2.png", "relabel", "cat")]
    check_decisions(good, ids, labels, path)
    wrong = {
        "no image of the set has the id 'cat/1.png' (1 of 1": Decision("cat/1.png", "drop"),
        "Did you mean 'train/cat/1.png'?": Decision("cat/1.png", "drop"),
        "unknown label 'cow'": Decision("train/cat/1.png", "relabel", "cow"),
        "write relabel": Decision("train/cat/1.png", "keep", "dog"),
    }
    for said, decision in wrong.items():
        with pytest.raises(DataError, match=re.escape(said)):
            check_decisions([decision], ids, labels, path)


def test_the_digest_is_of_what_was_decided() -> None:
    one, two = Decision("a", "keep", "cat", "ann", "1"), Decision("b", "relabel", "cat")
    assert decisions_digest([one, two]) == decisions_digest([two, Decision("a", "keep")])
    assert decisions_digest([one, two]) != decisions_digest([one, Decision("b", "relabel", "dog")])


def test_the_page_shows_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    path = tmp_path / "shown.csv"
    path.write_text(next(text for language, text in blocks if not language), encoding="utf-8")
    assert [decision.decision for decision in read_decisions(path)] == ["drop", "keep", "relabel", "unsure"]
    monkeypatch.chdir(tmp_path)
    exec(compile(next(text for language, text in blocks if language == "python"), "decisions.md", "exec"), {})
    assert read_decisions(tmp_path / "decisions.csv") == [Decision("cat/0017.png", "relabel", "dog")]


def test_what_a_kill_left_half_written_goes_with_the_next_decision(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    left, of_another = tmp_path / ".decisions.csv.1234.partial", tmp_path / ".run.json.1234.partial"
    for write in (write_decisions, append_decisions):
        left.write_text("half")
        of_another.write_text("half")
        write(path, [Decision("a.png", "drop", "", "x", "2026-01-01T00:00:00+00:00")])
        assert sorted(file.name for file in tmp_path.iterdir()) == [of_another.name, path.name]
