"""``--format`` and ``--fail-on``: where a result goes, and with which code a scan ends."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from end_to_end import FAST, invoke, write_npz

from antibackdoor.cli_formats import FailOn, found
from antibackdoor.types import Metrics, RunRecord

DOCS = Path(__file__).parents[1] / "docs" / "pipelines.md"


def record(verdict: str | None, flagged: int) -> RunRecord:
    metrics = Metrics(n_flagged=flagged, n_train=100)
    return RunRecord({}, {}, {}, {}, {}, metrics, verdict)  # type: ignore[arg-type]


def test_a_scan_gives_every_format_out_at_once_and_ends_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    write_npz(tmp_path / "pets.npz", 8)
    done = invoke(
        *("scan", "pets.npz", "--out", "run", *FAST, "--format", "json", "--format", "sarif=out/scan.sarif"),
        *("--format", "junit=scan.xml", "--format", "github=annotation.txt", "--fail-on", "undecided"),
    )
    assert done.code == 3, done
    values = json.loads(done.out)  # nothing but the document, though the scan was not quiet
    assert values["verdict"] == "undecided"
    assert values["flagged"] == 1
    assert "epoch 1/1" in done.err
    log = json.loads((tmp_path / "out" / "scan.sarif").read_text(encoding="utf-8"))
    assert [result["ruleId"] for result in log["runs"][0]["results"]] == ["ABD002", "ABD003"]
    assert ET.parse(tmp_path / "scan.xml").getroot().get("tests") == "4"
    assert (tmp_path / "annotation.txt").read_text(encoding="utf-8").startswith("::warning ")
    assert (tmp_path / "summary.md").read_text(encoding="utf-8").startswith("## antibackdoor")
    # The content of an image is kept in the run, so a later report says the same.
    again = invoke("report", "run", "--format", "json")
    assert (again.code, json.loads(again.out)) == (0, values)


def test_where_all_formats_go_to_files_the_text_is_printed(finished_run: Path, tmp_path: Path) -> None:
    done = invoke("report", finished_run, "--format", f"sarif={tmp_path / 'a.sarif'}")
    assert done.code == 0, done
    assert "verdict: " in done.out
    assert done.out == invoke("report", finished_run, "--format", "text").out


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("serif",), "Did you mean 'sarif'"),
        (("sarif", "junit"), "one alone can go to standard output"),
        (("sarif=a", "junit=a"), "cannot share a file"),
        (("sarif=",), "the name of the file is missing"),
    ],
)
def test_a_wrong_format_is_refused_before_the_work(given: tuple[str, ...], named: str, tmp_path: Path) -> None:
    options = [text for name in given for text in ("--format", name)]
    done = invoke("scan", "nowhere", "--out", tmp_path / "run", *options)
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert not (tmp_path / "run").exists()


def test_a_wrong_level_is_refused(tmp_path: Path) -> None:
    done = invoke("scan", "nowhere", "--out", tmp_path / "run", "--fail-on", "poison")
    assert done.code == 2
    assert "poisoned" in done.err


@pytest.mark.parametrize(
    ("verdict", "flagged", "levels"),
    [
        ("poisoned", 5, {"poisoned", "undecided", "suspects"}),
        ("undecided", 0, {"undecided"}),
        ("undecided", 5, {"undecided", "suspects"}),
        ("no sign of poison", 0, set()),
        ("no sign of poison", 5, {"suspects"}),
        (None, 0, {"undecided"}),
    ],
)
def test_what_each_level_stops_at(verdict: str | None, flagged: int, levels: set[str]) -> None:
    assert {str(level) for level in FailOn if found(record(verdict, flagged), [level])} == levels
    assert found(record(verdict, flagged), list(FailOn)) == bool(levels)
    assert not found(record(verdict, flagged), None)


def test_only_what_is_new_since_a_baseline_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_npz(tmp_path / "pets.npz", 8)
    shares = {name: ("--set", f"defence.share={share}") for name, share in (("first", 0.2), ("more", 0.5))}
    assert invoke("scan", "pets.npz", "--out", "first", *FAST, *shares["first"], "--quiet").code == 0
    (tmp_path / "pets.npz").rename(tmp_path / "renamed.npz")
    scan = ("scan", "renamed.npz", *FAST, "--format", "json", "--fail-on", "suspects", "--fail-on", "undecided")
    same = invoke(*scan, "--out", "same", *shares["first"], "--baseline", "first")
    assert same.code == 0, same
    values = json.loads(same.out)
    assert (values["flagged"], values["suspects"], values["metrics"]["n_flagged"]) == (0, [], 5)
    assert values["evidence"][0].startswith("New since first: 0 flagged images; 5 more were flagged there already")
    more = invoke(*scan, "--out", "more", *shares["more"], "--baseline", "first")
    assert more.code == 3, more
    values = json.loads(more.out)
    assert values["flagged"] == len(values["suspects"]) >= 7
    known = {row.split(",")[1][-5:] for row in (tmp_path / "first" / "suspects.csv").read_text().splitlines()[1:6]}
    assert not known & {suspect["id"][-5:] for suspect in values["suspects"]}
    assert invoke(*scan, "--out", "again", *shares["first"]).code == 3
    refused = invoke(*scan, "--out", "no", "--baseline", "nowhere")
    assert (refused.code, refused.out, (tmp_path / "no").exists()) == (2, "", False)
    assert "nowhere" in refused.err


def test_the_page_lists_the_keys_of_the_json(finished_run: Path) -> None:
    values = json.loads(invoke("report", finished_run, "--format", "json").out)
    listed = re.findall(r"^\| `(\w+)` \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert [key for key in values if key not in listed] == []
