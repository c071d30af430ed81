from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from html_page import Page

from antibackdoor.benchmark.leaderboard import render_leaderboard, write_leaderboard

Record = dict[str, Any]
Make = Callable[..., Record]
Grid = Callable[..., list[Record]]
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium here")


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_is_well_formed_and_loads_nothing(grid: Grid, tmp_path: Path) -> None:
    (path,) = write_leaderboard(grid(), tmp_path)
    assert path == tmp_path / "leaderboard.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|url\(|@import", text)
    assert [attributes for _, attributes in page.tags if "src" in attributes or "href" in attributes] == []
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "prefers-color-scheme: dark" in text
    headings = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(headings, headings[1:], strict=False))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_rows_hold_means_spread_and_what_was_given(record: Make) -> None:
    records = [
        record(seed=0, ca=0.9),
        record(seed=1, ca=0.8),
        record(seed=0, defence="nad"),
        record(seed=2, error="no"),
    ]
    plain, nad = data_of(render_leaderboard(records))["rows"]
    assert plain["stats"]["ca"] == [pytest.approx(0.85), pytest.approx(0.0707, abs=1e-4), 2]
    assert (plain["seeds"], plain["failed"], plain["of"], plain["given"]) == ([0, 1], 1, 3, [])
    assert (nad["given"], nad["stats"]["cost"], nad["stats"]["precision"]) == (["5 % trusted"], [1.5, None, 1], None)


def test_filters_offer_what_is_there(grid: Grid) -> None:
    page = render_leaderboard(grid(data=("cifar10", "gtsrb"), rates=(0.7, 0.05)))
    selects = re.findall(r'<select data-key="(\w+)">(.*?)</select>', page, re.DOTALL)
    options = {key: re.findall(r"<option[^>]*>([^<]*)</option>", body) for key, body in selects}
    assert options == {
        "data": ["all", "cifar10", "gtsrb"],
        "attack": ["all", "none", "badnets", "sig"],
        "rate": ["all", "none", "5 %", "70 %"],
        "defence": ["all", "none", "nad", "abl", "witnesses"],
        "model": ["all", "wrn-16-1"],
    }


def test_where_it_was_made_stands_below(record: Make) -> None:
    other = record(seed=5)
    other["device"], other["versions"] = "a plain name", {"torch": "2.14.0"}
    bare = record(seed=6)
    bare["device"], bare["versions"] = None, None
    text = Page(render_leaderboard([record(), other, bare, record(seed=9, error="the disk is full")])).text
    for words in (
        "3 finished runs, 1 failed",
        "Seeds 0, 5, 6",
        "Some CPU, cpu, bfloat16, 2 threads 1 run",
        "a plain name 1 run",
        "not recorded 1 run",
        "torch 2.13.0, 2.14.0",
        "Failed runs, in no mean: 1",
        "badnets 10 %, none, seed 9 : NonFiniteLossError: the disk is full",
    ):
        assert words in text


EVIL = "</script><script>document.title='caught'</script><img src=x onerror=alert(1)>"


def test_names_from_outside_are_escaped(record: Make) -> None:
    bad = record(data=EVIL, defence="abl", label=EVIL, model="m' \"&amp;")
    failed = record(defence="witnesses", error=EVIL)
    page = render_leaderboard([bad, failed])
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 2
    row = data_of(page)["rows"][0]
    assert (row["data"], row["defence"], row["model"]) == (EVIL, EVIL, "m' \"&amp;")
    assert EVIL in Page(page).text


def test_the_same_records_give_the_same_page(grid: Grid) -> None:
    assert render_leaderboard(grid()) == render_leaderboard(grid())
    empty = render_leaderboard([])
    assert data_of(empty)["rows"] == []


# What the page shows after some steps, left as JSON in its own text.
SCRIPT = r"""
<script>
const tell = {};
const board = document.getElementById("board");
const column = (name) => [...board.tHead.rows[0].cells].findIndex((cell) => cell.textContent.startsWith(name));
const cells = (name) => [...board.tBodies[0].rows].map((row) => row.cells[column(name)].textContent);
const press = (name) => board.tHead.rows[0].cells[column(name)].querySelector("button").click();
const set = (element, value) => {
  element.value = value;
  element.dispatchEvent(new Event("input", { bubbles: true }));
};
const choose = (key, value) => set(document.querySelector(`select[data-key="${key}"]`), value);
const heads = () => [...board.tHead.rows[0].cells];
const name = (cell) => cell.textContent.replace("\u00a0", " ");
const sorted = () => heads().filter((cell) => cell.ariaSort).map((cell) => [name(cell), cell.ariaSort]);
const texts = (row) => [...row.cells].map((cell) => cell.textContent);
const ranking = () => [...document.querySelectorAll("#ranking tbody tr")].map(texts);
const wait = () => new Promise((done) => setTimeout(done, 20));
(async () => {
STEPS
  const told = document.createElement("pre");
  told.id = "told";
  told.textContent = JSON.stringify(tell);
  document.body.append(told);
})();
</script>
</body>"""


def browse(page: str, steps: str, folder: Path, size: str = "1280,900") -> Any:
    """Open a copy of the page in a browser, take the steps, and return what they told."""
    copy = folder / "copy.html"
    copy.write_text(page.replace("</body>", SCRIPT.replace("STEPS", steps)), encoding="utf-8")
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *(f"--user-data-dir={folder / 'profile'}", f"--window-size={size}", "--virtual-time-budget=5000"),
        *("--dump-dom", copy.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@in_browser
def test_sorting_in_a_browser(record: Make, tmp_path: Path) -> None:
    records = [
        record(ca=0.9, asr=0.99),
        record(defence="abl", ca=0.7, asr=0.02),
        record(defence="witnesses", ca=0.8, asr=0.2),
        record(attack="none", ca=0.95),
        record(rate=0.05, ca=0.85, asr=0.5),
    ]
    steps = """
  tell.before = [cells("Attack success"), sorted()];
  press("Attack success"); tell.rising = [cells("Attack success"), sorted()];
  press("Attack success"); tell.falling = [cells("Attack success"), sorted()];
  press("Clean accuracy"); tell.accuracy = [cells("Clean accuracy"), sorted()];
  press("Defence"); tell.defence = cells("Defence").map((text) => text.split(" ")[0]);
  press("Rate"); tell.rate = cells("Rate");
"""
    told = browse(render_leaderboard(records), steps, tmp_path)
    assert told["before"] == [["–", "50.0", "99.0", "2.0", "20.0"], []]
    assert told["rising"] == [["2.0", "20.0", "50.0", "99.0", "–"], [["Attack success, %", "ascending"]]]
    assert told["falling"] == [["99.0", "50.0", "20.0", "2.0", "–"], [["Attack success, %", "descending"]]]
    assert told["accuracy"] == [["95.0", "90.0", "85.0", "80.0", "70.0"], [["Clean accuracy, %", "descending"]]]
    assert told["defence"] == ["abl", "none", "none", "none", "witnesses"]
    assert told["rate"] == ["–", "5 %", "10 %", "10 %", "10 %"]


@in_browser
def test_defences_with_more_rows_rank_first_and_then_by_rating(record: Make, tmp_path: Path) -> None:
    records = [record(attack=attack, ca=0.9, asr=0.9) for attack in ("badnets", "sig")]
    records += [record(attack=attack, defence="nad", ca=0.9, asr=0.5) for attack in ("badnets", "sig")]
    records += [record(attack=attack, defence="witnesses", ca=0.9, asr=0.1) for attack in ("badnets", "sig")]
    records += [record(defence="abl", ca=0.9, asr=0.0)]
    steps = """
  const order = () => ranking().map((row) => row.slice(0, 3));
  tell.all = order();
  choose("attack", "=badnets"); tell.one = order();
"""
    told = browse(render_leaderboard(records), steps, tmp_path)
    assert told["all"] == [
        ["witnesses", "2", "0.900"],
        ["nad 5 % trusted", "2", "0.700"],
        ["none", "2", "–"],
        ["abl", "1", "0.950"],
    ]
    assert [row[:2] for row in told["one"]] == [
        ["abl", "1"],
        ["witnesses", "1"],
        ["nad 5 % trusted", "1"],
        ["none", "1"],
    ]
    assert "Defences with more rows come first" in Page(render_leaderboard(records)).text


@in_browser
def test_filtering_in_a_browser(grid: Grid, tmp_path: Path) -> None:
    records = grid(data=("cifar10", "gtsrb"), defences=("none", "nad", "witnesses"), seeds=(0, 1), ca=0.9, asr=0.25)
    steps = """
  const count = () => document.getElementById("count").textContent;
  tell.all = [count(), cells("n").length, ranking().map((row) => row.slice(0, 2))];
  choose("data", "=gtsrb"); tell.data = [count(), [...new Set(cells("Data set"))]];
  choose("attack", "=none"); tell.clean = [cells("Attack"), document.getElementById("overall").parentElement.hidden];
  choose("attack", "=sig"); choose("defence", "=nad"); tell.one = [count(), ranking()];
  document.querySelector("#filters button").click(); await wait(); tell.reset = count();
  set(document.getElementById("search"), "TRUSTED sig"); tell.search = [cells("Defence"), cells("Attack")];
  set(document.getElementById("search"), "nothing at all"); tell.nothing = count();
"""
    told = browse(render_leaderboard(records), steps, tmp_path)
    assert told["all"][:2] == ["18 of 18 rows shown.", 18]
    assert sorted(told["all"][2]) == [["nad 5 % trusted", "4"], ["none", "4"], ["witnesses", "4"]]
    assert told["data"] == ["9 of 18 rows shown.", ["gtsrb"]]
    assert told["clean"] == [["none"] * 3, True]
    assert told["one"] == ["1 of 18 rows shown.", [["nad 5 % trusted", "1", "0.500", "90.0", "25.0", "25.0"]]]
    assert told["reset"] == "18 of 18 rows shown."
    assert told["search"] == [["nad 5 % trusted"] * 2, ["sig"] * 2]
    assert told["nothing"] == "0 of 18 rows shown."


@in_browser
@pytest.mark.parametrize("size", ["390,844", "1280,900"])
def test_the_page_never_scrolls_sideways(grid: Grid, tmp_path: Path, size: str) -> None:
    records = grid(data=("a_data_set_with_a_very_long_name_" * 3,), defences=("none", "nad", "witnesses"), seeds=(0,))
    steps = """
  const page = document.documentElement;
  tell.wide = [page.scrollWidth, page.clientWidth];
  const box = board.parentElement;
  tell.box = box.scrollWidth > box.clientWidth && box.tabIndex === 0;
"""
    told = browse(render_leaderboard(records), steps, tmp_path, size)
    assert told["wide"][0] <= told["wide"][1]
    assert told["box"]


@in_browser
def test_names_run_no_script_in_a_browser(record: Make, tmp_path: Path) -> None:
    told = browse(
        render_leaderboard([record(data=EVIL, label=EVIL, defence="abl")]),
        'tell.title = document.title; tell.images = document.images.length; tell.data = cells("Data set");',
        tmp_path,
    )
    assert told == {"title": "Leaderboard of anti-backdoor training", "images": 0, "data": [EVIL]}
