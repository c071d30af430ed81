"""``--group-by COLUMN``: from the table to the record, the text and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from end_to_end import FAST, assert_refused, invoke, write_folder

from antibackdoor.data.grouping import groups_of
from antibackdoor.errors import DataError


def table(folder: Path, header: str = "path,label,Contributor") -> Path:
    root = write_folder(folder / "pets", 8)
    files = sorted(path.relative_to(folder).as_posix() for path in root.rglob("*.png"))
    rows = [f"{file},{Path(file).parent.name},{'<b>eve</b>' if row % 2 else ''}" for row, file in enumerate(files)]
    (folder / "pets.csv").write_text("\n".join([header, *rows]))
    return folder / "pets.csv"


def test_the_column_of_every_image(tmp_path):
    found = groups_of(str(table(tmp_path)), "contributor")
    assert len(found) == 24
    assert found["pets/cat/000.png"] == ""
    assert found["pets/cat/001.png"] == "<b>eve</b>"


def test_a_scan_counts_flags_by_group(tmp_path):
    out = tmp_path / "run"
    options = [*FAST, "--set", "defence.share=0.25", "--quiet"]
    done = invoke("scan", table(tmp_path), "--out", out, "--group-by", "contributor", *options, "--format", "text")
    assert done.code == 0, done
    record = json.loads((out / "run.json").read_text())
    found = record["data"]["groups"]
    assert (found["column"], found["count"]) == ("contributor", 2)
    assert sum(group["flagged"] for group in found["groups"]) == record["metrics"]["n_flagged"] == 6
    assert sum(group["images"] for group in found["groups"]) == 24
    assert "by contributor: 0 of 2 stand out" in done.out
    page = (out / "report.html").read_text()
    assert "By contributor" in page
    assert "&lt;b&gt;eve&lt;/b&gt;" in page
    assert "<b>eve</b>" not in page
    again = invoke("report", out, "--format", "json")
    assert json.loads(again.out)["groups"] == found


@pytest.mark.parametrize(
    ("source", "words"),
    [("pets.csv", "has no column 'source'; it has 'path', 'label', 'contributor'"), ("pets", "no columns")],
)
def test_what_has_no_such_column_is_refused_before_any_work(source, words, tmp_path):
    table(tmp_path)
    done = invoke("scan", tmp_path / source, "--out", tmp_path / "run", "--group-by", "source", "--quiet")
    assert_refused(done, "data.group_by", words)
    assert not (tmp_path / "run").exists()
    with pytest.raises(DataError, match="^data.group_by: "):
        groups_of(str(tmp_path / source), "source")
