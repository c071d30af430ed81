"""The page's server: who may ask, what it answers, and that decisions are saved when it says so."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import CLASSES
from html_page import Page
from PIL import Image

from antibackdoor.config import RunConfig
from antibackdoor.data.sources import load
from antibackdoor.decisions import Decision, read_decisions
from antibackdoor.errors import StorageError
from antibackdoor.review.board import Board, Query
from antibackdoor.review.server import open_board

pytest.importorskip("starlette")
pytest.importorskip("httpx2")

from starlette.testclient import TestClient

from antibackdoor.review.app import build_app

TOKEN, HOST = "s3cret-token", "127.0.0.1:4321"  # noqa: S105
BASE, ORIGIN = f"http://{HOST}/{TOKEN}/", {"origin": f"http://{HOST}"}


@pytest.fixture
def client(board: Board) -> TestClient:
    return TestClient(build_app(board, TOKEN, [HOST, "localhost:4321"]), base_url=BASE)


def post(client: TestClient, address: str, body: object) -> dict[str, object]:
    answer = client.post(f"{BASE}{address}", json=body, headers=ORIGIN)
    assert answer.status_code == 200, answer.text
    return answer.json()


def get(client: TestClient, address: str) -> dict[str, object]:
    answer = client.get(f"{BASE}{address}")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["", "/", "/wrong/", "/wrong/api/run", f"/{TOKEN}x/", f"/x/{TOKEN}/", "//", "/%00/"])
def test_a_wrong_token_is_refused(client: TestClient, path: str) -> None:
    answer = client.get(f"http://{HOST}{path}")
    assert answer.status_code == 403
    assert TOKEN not in answer.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:4321", "127.0.0.1", "127.0.0.1:4322", "[::1]:4321"])
def test_another_host_is_refused(client: TestClient, host: str) -> None:
    assert client.get(BASE, headers={"host": host}).status_code == 403


def test_localhost_is_the_same_server(client: TestClient) -> None:
    assert client.get(f"http://localhost:4321/{TOKEN}/").status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", f"https://{HOST}", f"http://{HOST}.evil", ""])
def test_another_origin_is_refused(client: TestClient, origin: str) -> None:
    assert client.get(BASE, headers={"origin": origin}).status_code == 403
    answer = client.post(f"{BASE}api/undo", json={}, headers={"origin": origin})
    assert answer.status_code == 403


def test_nothing_is_changed_without_an_origin(client: TestClient, run: Path) -> None:
    body = {"rows": [0], "decision": "drop"}
    assert client.post(f"{BASE}api/decide", json=body).status_code == 403
    assert not (run / "decisions.csv").exists()


def test_every_answer_has_a_strict_policy(client: TestClient) -> None:
    for address in ("", "review.js", "api/run", "thumb/0", "nothing"):
        headers = client.get(f"{BASE}{address}").headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("http://evil.example/").headers["content-security-policy"]


def test_the_page_asks_nothing_of_other_servers(client: TestClient) -> None:
    text = client.get(BASE).text
    page = Page(text)
    assert page.open == []
    assert [tag for tag, attributes in page.tags if "style" in attributes or "onclick" in attributes] == []
    for file in files("antibackdoor.review").joinpath("static").iterdir():
        content = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?:|//[a-z]+\.|@import|innerHTML|insertAdjacentHTML|eval\(", content) == [], file.name
    for address in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert client.get(f"{BASE}{address}").status_code == 200, address


def test_what_is_under_review(client: TestClient, board: Board) -> None:
    found = get(client, "api/run")
    assert (found["images"], found["flagged"], found["near"], found["gone"]) == (180, 24, 30, 0)
    assert found["classes"] == list(CLASSES)
    assert found["changed"] == 0
    assert found["tally"]["undecided"] == 54


def test_groups_by_finding_set_suspects_apart_and_say_what_was_found(client: TestClient, board: Board) -> None:
    found = get(client, "api/groups?by=finding&show=all")["groups"]
    assert [(group["label"], group["tally"]["images"], group["finding"]) for group in found] == [
        ("cat", 24, "Class 'cat' is poisoned: <a mark>."),
        ("dog", 60, "Not flagged."),
        ("owl", 60, "Not flagged."),
        ("cat", 36, "Not flagged."),
    ]
    assert get(client, "api/groups?by=class")["groups"][0]["finding"] == found[0]["finding"]
    assert {group["finding"] for group in get(client, "api/groups?by=likeness")["groups"]} == {""}
    assert client.get(f"{BASE}group/finding/{found[0]['key']}/differs").status_code == 200
    query = {"by": "finding", "group": found[0]["key"], "show": "review", "text": ""}
    assert post(client, "api/decide", {"query": query, "decision": "drop"})["changed"] == 24
    assert {item["id"] for item in get(client, "api/images?by=none&show=drop")["items"]} == {
        f"cat/{number:03d}.png" for number in range(24)
    }


def test_a_class_in_doubt_says_why_in_its_group(make_run: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    data = load(images).train
    config = RunConfig.parse({"data": {"source": str(images)}})
    run = make_run(tmp_path / "doubt", config, data, torch.zeros(len(data), dtype=torch.bool), (1,))
    board = open_board(run)
    doubt = "Class 'dog' is in doubt: hardly."
    board.stored = replace(board.stored, record=replace(board.stored.record, evidence=("Few.", doubt)))
    query = Query(by="finding")
    said = {board.item(int(rows[0]))["label"]: board.finding(query, rows) for _, rows in board.groups(query)}
    assert said["dog"] == doubt
    assert set(said.values()) - {doubt} <= {"Not flagged."}


def test_groups_of_likeness_set_the_marked_images_apart(client: TestClient, board: Board) -> None:
    found = get(client, "api/groups?by=likeness")
    assert sum(group["tally"]["images"] for group in found["groups"]) == 54
    for group in found["groups"]:
        flagged = group["tally"]["flagged"]
        assert flagged in (0, group["tally"]["images"])
        assert len(group["ordinary"]) == 8
        assert not any(board.stored.flagged[row] for row in group["ordinary"])
        seen = group["seen"]
        assert (seen is not None) == bool(flagged)  # in the others the network sees what their label says
        if seen is not None:
            assert (seen["label"], seen["count"], seen["of"]) == ("dog", flagged, flagged)
            assert {board.item(row)["label"] for row in seen["rows"]} == {"dog"}
            assert {item["seen"] for item in group["items"]} == {"dog"}
    assert found["groups"][0]["tally"]["flagged"] > 0
    key = found["groups"][0]["key"]
    sizes = set()
    for what in ("mean", "ordinary", "differs"):
        answer = client.get(f"{BASE}group/likeness/{key}/{what}")
        pixels = np.array(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
        sizes.add(pixels.shape)
        if what == "differs":
            glow = pixels[:, :, 0] - pixels[:, :, 2]
            assert glow[-3:, -3:].min() > glow[:-3, :-3].max()
    assert len(sizes) == 1


def test_pages_of_images_hold_each_of_them_once(client: TestClient) -> None:
    for order in ("score", "score-up", "id", "class"):
        rows: list[int] = []
        while True:
            found = get(client, f"api/images?by=none&show=all&order={order}&offset={len(rows)}&limit=50")
            if not found["items"]:
                break
            rows += [item["row"] for item in found["items"]]
        assert sorted(rows) == list(range(180))
        assert found["total"] == 180
    scores = [float(item["score"]) for item in get(client, "api/images?by=none&order=score")["items"]]
    assert scores == sorted(scores, reverse=True)


def test_search_and_filters(client: TestClient) -> None:
    assert [item["id"] for item in get(client, "api/images?by=none&show=all&text=CAT/007")["items"]] == ["cat/007.png"]
    assert get(client, "api/images?by=none&show=flagged")["total"] == 24
    assert get(client, "api/images?by=none&show=near")["total"] == 30
    assert get(client, "api/images?by=class&group=0&show=all")["total"] == 60
    assert get(client, "api/groups?by=class&show=all")["total"] == 3
    assert get(client, "api/groups?by=likeness&text=nothing-like-it")["groups"] == []


def test_decisions_are_in_the_file_when_the_answer_comes(client: TestClient, run: Path) -> None:
    state = post(client, "api/decide", {"rows": [0, 2], "decision": "drop"})
    assert (state["changed"], state["tally"]["drop"], state["undoable"]) == (2, 2, 1)
    post(client, "api/decide", {"rows": [2], "decision": "relabel", "label": "dog"})
    post(client, "api/decide", {"rows": [3], "decision": "relabel", "label": "cat"})
    found = read_decisions(run / "decisions.csv")
    assert {(one.id, one.decision, one.label, one.who) for one in found} == {
        ("cat/000.png", "drop", "", "tester"),
        ("cat/002.png", "relabel", "dog", "tester"),
        ("cat/003.png", "keep", "", "tester"),
    }
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one.when) for one in found)
    items = get(client, "api/images?by=none&show=relabel")["items"]
    assert [(item["id"], item["to"]) for item in items] == [("cat/002.png", "dog")]


def test_a_whole_group_and_undo(client: TestClient, run: Path) -> None:
    post(client, "api/decide", {"rows": [1], "decision": "keep"})
    query = {"by": "class", "group": 0, "show": "flagged", "text": ""}
    assert post(client, "api/decide", {"query": query, "decision": "drop"})["changed"] == 24
    assert len(read_decisions(run / "decisions.csv")) == 24
    undone = post(client, "api/undo", {})
    assert (undone["changed"], len(undone["items"]), undone["undoable"]) == (24, 24, 1)
    assert [(one.id, one.decision) for one in read_decisions(run / "decisions.csv")] == [("cat/001.png", "keep")]
    post(client, "api/undo", {})
    assert read_decisions(run / "decisions.csv") == []
    assert post(client, "api/undo", {})["changed"] == 0


def test_a_decision_is_taken_back(client: TestClient, run: Path) -> None:
    post(client, "api/decide", {"rows": [5, 6], "decision": "unsure"})
    post(client, "api/decide", {"rows": [5], "decision": "clear"})
    assert [one.id for one in read_decisions(run / "decisions.csv")] == ["cat/006.png"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"rows": "all", "decision": "drop"},
        {"rows": [-1], "decision": "drop"},
        {"rows": [180], "decision": "drop"},
        {"rows": [True], "decision": "drop"},
        {"rows": [1.0], "decision": "drop"},
        {"rows": [1]},
        {"rows": [1], "decision": "burn"},
        {"rows": [1], "decision": ["drop"]},
        {"rows": [1], "decision": "relabel", "label": "no such class"},
        {"rows": [1], "decision": "relabel"},
        {"query": {"by": "class"}, "decision": "drop"},
        {"query": {"by": "../..", "group": 0, "show": "all", "text": ""}, "decision": "drop"},
        [1],
    ],
)
def test_what_is_no_decision_is_refused(client: TestClient, run: Path, body: object) -> None:
    answer = client.post(f"{BASE}api/decide", json=body, headers=ORIGIN)
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert not (run / "decisions.csv").exists()


def test_other_types_and_too_much_are_refused(client: TestClient) -> None:
    address = f"{BASE}api/decide"
    assert client.post(address, content="rows=1", headers=ORIGIN).status_code == 415
    typed = {**ORIGIN, "content-type": "application/json"}
    assert client.post(address, content=b"[" * 2_000_000, headers=typed).status_code == 413
    assert client.post(address, content=b"[" * 100_000, headers=typed).status_code == 400


@pytest.mark.parametrize(
    "address",
    [
        *("thumb/180", "thumb/-1", "thumb/..%2f..%2fetc%2fpasswd", "image/cat%2f000.png", "thumb/1e3", "image/"),
        *("../../etc/passwd", "static/page.html", "group/class/99/mean", "group/x/0/mean", "group/class/0/x"),
        *("%2e%2e/%2e%2e/etc/passwd", "review.css/../../server.py"),
    ],
)
def test_only_pictures_of_the_run_are_served(client: TestClient, address: str) -> None:
    assert client.get(f"{BASE}{address}").status_code in (403, 404)


@pytest.mark.parametrize("question", ["by=x", "show=x", "order=x", "offset=-1", "offset=a", "limit=1e9", "group=x"])
def test_wrong_questions_are_refused(client: TestClient, question: str) -> None:
    answer = client.get(f"{BASE}api/images?{question}")
    assert (answer.status_code, list(answer.json())) == (400, ["error"])


def test_pictures_are_those_of_the_run(client: TestClient, images: Path) -> None:
    for kind in ("thumb", "image"):
        answer = client.get(f"{BASE}{kind}/7")
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(
            np.array(Image.open(io.BytesIO(answer.content))), np.array(Image.open(images / "cat" / "007.png"))
        )
    assert client.get(f"{BASE}differs/7").status_code == 200


def test_what_cannot_be_saved_is_said_and_not_shown(
    client: TestClient, board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("cannot write decisions.csv: No space left on device")

    monkeypatch.setattr("antibackdoor.review.journal.append_decisions", full)
    answer = client.post(f"{BASE}api/decide", json={"rows": [0], "decision": "drop"}, headers=ORIGIN)
    assert (answer.status_code, "No space left" in answer.json()["error"]) == (409, True)
    assert board.tally()["drop"] == 0


def test_decisions_made_elsewhere_are_taken_over(client: TestClient, board: Board, run: Path) -> None:
    post(client, "api/decide", {"rows": [0], "decision": "drop"})
    with (run / "decisions.csv").open("a") as file:
        file.write("cat/001.png,keep,,someone,\nnot/in/this/run.png,drop,,someone,\n")
    post(client, "api/decide", {"rows": [2], "decision": "unsure"})
    found = {one.id: one.decision for one in read_decisions(run / "decisions.csv")}
    assert found == {
        "cat/000.png": "drop",
        "cat/001.png": "keep",
        "not/in/this/run.png": "drop",
        "cat/002.png": "unsure",
    }
    assert board.item(1)["decision"] == "keep"
    assert board.journal.get("cat/001.png") == Decision("cat/001.png", "keep", "", "someone", "")
