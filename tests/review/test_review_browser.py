"""The page in a real browser, at the widths of a desk and of a telephone."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from antibackdoor.config import RunConfig
from antibackdoor.data.sources import load
from antibackdoor.decisions import read_decisions
from antibackdoor.review.board import Board
from antibackdoor.review.server import open_board

sync_api = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium here", allow_module_level=True)

# Another list is asked for, and a page is turned before it has come.
IN_A_HURRY = """() => {
  const select = document.querySelector("select[name=show]");
  select.value = "flagged";
  select.dispatchEvent(new Event("change", { bubbles: true }));
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "n", bubbles: true }));
}"""
WIDTHS = {"desk": (1280, 900), "telephone": (390, 844)}


@contextmanager
def serving(board: Board) -> Iterator[str]:
    """Serve a board in a thread, and give its address."""
    from antibackdoor.review.app import build_app

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(build_app(board, "token", [host]), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://{host}/token/"
        finally:
            server.should_exit = True
            thread.join(20)


@contextmanager
def browsing(address: str, width: int, height: int) -> Iterator[Any]:
    """Open the page in a new browser; nothing may go wrong in it, and nothing else may be asked for."""
    wrong: list[str] = []
    own = address.split("#")[0]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 600).new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(own) else wrong.append(asked.url))
        page.goto(address)
        page.wait_for_selector(".tile")
        yield page
        browser.close()
    assert wrong == []


def eventually(say: Callable[[], object], expected: object) -> None:
    end = time.monotonic() + 60
    while say() != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert say() == expected


@pytest.mark.parametrize("size", WIDTHS.values(), ids=WIDTHS)
def test_a_review_from_end_to_end(board: Board, run: Path, size: tuple[int, int]) -> None:
    def decided() -> dict[str, tuple[str, str]]:
        path = run / "decisions.csv"
        return {one.id: (one.decision, one.label) for one in read_decisions(path)} if path.exists() else {}

    with serving(board) as address, browsing(address, *size) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]
        seen = "[...document.images].slice(0, 8).every((image) => image.naturalWidth > 0)"
        eventually(lambda: page.evaluate(seen), True)
        by_keys(page, decided)
        by_hand(page, decided)
        by_pages(page)
        page.locator("select[name=show]").select_option("drop")
        eventually(lambda: page.locator(".tile").count(), len(decided()))
        page.reload()
        eventually(lambda: page.locator(".tile.drop").count(), len(decided()))
        page.locator("input[name=text]").fill("NO SUCH IMAGE")
        page.wait_for_selector(".empty")


def test_twenty_thousand_images(make_run: Callable[..., Path], tmp_path: Path) -> None:
    labels = np.arange(20_000) % 10
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "many.npz", images=pixels, labels=labels)
    data = load(tmp_path / "many.npz").train
    config = RunConfig.parse({"data": {"source": str(tmp_path / "many.npz")}})
    run = make_run(tmp_path / "many", config, data, torch.arange(20_000) < 4000)
    with serving(open_board(run)) as address, browsing(f"{address}#by=none&show=all&offset=19920", 1280, 900) as page:
        eventually(lambda: page.locator("#place").inner_text(), "19,921–20,000 of 20,000 images")
        assert page.locator(".tile").count() == 80
        page.locator("select[name=by]").select_option("likeness")
        page.evaluate(IN_A_HURRY)
        eventually(lambda: page.locator("#place").inner_text().split(" ")[0], "1–12")
        assert page.locator(".tile").count() <= 12 * 24  # a page of groups, whatever there is
        page.keyboard.press("n")
        eventually(lambda: page.locator("#place").inner_text().split("–")[0], "13")
        page.locator("select[name=by]").select_option("none")
        eventually(lambda: page.locator("#place").inner_text(), "1–120 of 4,000 images")
        page.locator(".tile").first.focus()
        page.keyboard.press("Shift+D")
        eventually(lambda: page.locator("#tally").inner_text(), "4,000 of 8,000 images decided")
    assert len(read_decisions(run / "decisions.csv")) == 4000


def by_pages(page: Any) -> None:
    """Open a group, turn its pages, go up and down in it, search in it, and go back by the browser's own button."""
    page.locator("select[name=by]").select_option("none")
    page.locator("select[name=show]").select_option("all")
    page.locator("select[name=order]").select_option("id")
    eventually(lambda: page.locator("#board").get_attribute("aria-busy"), "false")
    assert page.locator("#place").inner_text() == "1–120 of 180 images"
    page.locator(".tile").first.focus()
    page.keyboard.press("n")
    eventually(lambda: page.locator("#place").inner_text(), "121–180 of 180 images")
    names = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.title.split('\\n')[0])")
    assert names == [f"owl/{number:03d}.png" for number in range(60)]
    page.go_back()
    eventually(lambda: page.locator("#place").inner_text(), "1–120 of 180 images")
    page.locator("select[name=by]").select_option("class")
    page.get_by_role("button", name="Show all 60").first.click()
    eventually(lambda: page.locator(".tile").count(), 60)
    eventually(lambda: page.locator(".group h2").all_inner_texts(), ["cat"])
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.title").startswith("cat/")
    assert not page.evaluate("document.activeElement.title").startswith("cat/000.png")
    left = page.evaluate("document.activeElement.getBoundingClientRect().left")
    assert left == page.locator(".tile").first.bounding_box()["x"]
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.title").startswith("cat/000.png")
    page.keyboard.press("a")
    assert page.locator("#selected").inner_text() == "60 images selected"
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("CAT/007")
    eventually(lambda: page.locator(".tile").count(), 1)
    page.keyboard.press("Escape")
    page.locator(".back").click()
    eventually(lambda: page.locator(".group").count(), 1)
    page.locator("input[name=text]").fill("")


def by_keys(page: Any, decided: Callable[[], dict[str, tuple[str, str]]]) -> None:
    """Go through the most suspect group with the keys alone, and take it all back."""
    names = page.locator(".tile").evaluate_all("tiles => tiles.map((tile) => tile.title.split('\\n')[0])")
    page.locator(".tile").first.focus()
    for key in ("d", "k", "u", "r"):
        page.keyboard.press(key)
    page.keyboard.type("ow")
    page.keyboard.press("Enter")
    expected = dict(zip(names, [("drop", ""), ("keep", ""), ("unsure", ""), ("relabel", "owl")], strict=False))
    eventually(decided, expected)
    assert page.locator(".tile").nth(3).locator(".badge").inner_text() == "→ owl"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("x")
    del expected[names[3]]
    eventually(decided, expected)
    for left in (4, 3, 2, 1, 0):
        page.keyboard.press("Control+z")
        eventually(lambda: len(decided()), left)
    page.wait_for_selector("#undo:disabled")


def by_hand(page: Any, decided: Callable[[], dict[str, tuple[str, str]]]) -> None:
    """Select with clicks, zoom, and drop a whole group."""
    tiles = page.locator(".tile")
    tiles.nth(0).click()
    tiles.nth(2).click(modifiers=["Shift"])
    assert page.locator("#selected").inner_text() == "3 images selected"
    page.locator("#actions [data-decide=keep]").click()
    eventually(lambda: [how for how, _ in decided().values()], ["keep"] * 3)
    tiles.nth(1).dblclick()
    page.wait_for_selector("#zoom[open]")
    first = page.locator("#zoom-id").inner_text()
    page.locator("#zoom [data-zoom=unsure]").click()
    eventually(lambda: decided()[first][0], "unsure")
    assert page.locator("#zoom-id").inner_text() != first
    page.keyboard.press("h")
    eventually(lambda: page.locator("#zoom-image").get_attribute("src").split("/")[0], "differs")
    page.keyboard.press("Escape")
    size = int(page.locator(".group .tally").first.inner_text().split()[0])
    tiles.nth(0).focus()
    page.keyboard.press("Shift+D")
    eventually(lambda: [how for how, _ in decided().values()], ["drop"] * size)
