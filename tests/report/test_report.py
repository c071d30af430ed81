from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from html_page import Page
from PIL import Image

from antibackdoor.report import StoredRun, render
from antibackdoor.report.tables import percent
from antibackdoor.types import Metrics

Make = Callable[..., StoredRun]
N, K = 200, 4


def charts_of(page: str) -> list[str]:
    return re.findall(r'aria-labelledby="((?:loss|score)-[a-z]+)-title"', page)


def test_page_holds_every_section_in_order_and_is_well_formed(make: Make) -> None:
    text = render(make())
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.open == []
    assert page.all("html")[0]["lang"] == "en"
    titles = ["verdict", "figures", "suspects", "charts", "classes", "run", "settings", "skipped"]
    assert [h["id"] for h in page.all("h2")] == titles
    assert len(page.all("h1")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    for words in (
        "toy set",
        "Defence witnesses",
        "Model wrn-16-1",
        "Seed 3",
        "Class c0 splits in two.",
        "defence.gamma = 0.5",
        "defence.nested.deep = [1, 2]",
        "1 min 15 s",
        "12.3 s",
        "1 min 27 s",
        "torch 2.13.0",
        "init 99",
        "broken/one.png",
    ):
        assert words in page.text


def test_figures_stand_beside_their_denominators(make: Make) -> None:
    text = Page(render(make())).text
    flagged = int(make().flagged.sum())
    for words in (
        "Clean accuracy 86.1 % of 2,000 test images",
        "50.0 % of 200 test images of the class that the attack aims at",
        "Attack success 3.0 % of 1,800 triggered images of non-target classes",
        "Robust accuracy 80.0 % of 1,800 triggered images of non-target classes",
        "Hold-out accuracy 90.0 % of 1,000 held-out training images This part may be poisoned too",
        f"Precision 90.0 % of {flagged} flagged images",
        "Recall 75.0 % of 20 poison images",
        "False alarms < 0.1 % of 180 clean training images",
        "AUROC 0.988 over 20 poison and 180 clean images",
    ):
        assert words in text


def test_figures_that_are_none_are_left_out(make: Make) -> None:
    text = Page(render(make(record={"metrics": Metrics(ca=0.5, n_test=10)}))).text
    assert "50.0 % of 10 test images" in text
    for words in ("Attack success", "Recall", "AUROC", "Hold-out accuracy"):
        assert words not in text
    assert "Nothing was measured" in Page(render(make(record={"metrics": Metrics()}))).text


def test_precision_does_not_count_flagged_covers(make: Make) -> None:
    cover = np.zeros(N, dtype=np.bool_)
    cover[100:110] = True
    flagged = make().poison | cover
    text = Page(render(make(cover=cover, flagged=flagged))).text
    assert "of 20 flagged images, cover images not counted" in text
    assert "of 170 clean training images" in text
    assert "10 more carry the trigger with the right label" in text


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("poisoned", "The verdict is right."),
        ("no sign of poison", "The verdict is wrong: the poison was missed."),
        ("undecided", "The right verdict would have been “poisoned”."),
        (None, "Nothing in this run judged the data"),
    ],
)
def test_verdict_is_held_against_the_truth(make: Make, verdict: str | None, words: str) -> None:
    view = make(record={"verdict": verdict})
    text = Page(render(view)).text
    assert words in text
    assert (verdict or "not judged").capitalize() in text
    assert "experiment" not in Page(render(dataclasses.replace(view, poison=None))).text


def test_false_alarm_is_named(make: Make) -> None:
    clean = np.zeros(N, dtype=np.bool_)
    page = render(make(poison=clean))
    assert "it is a false alarm" in Page(page).text
    assert charts_of(page) == ["loss-flag", "score-flag"]


def test_undecided_does_not_claim_more_than_it_knows(make: Make) -> None:
    text = Page(render(make(record={"verdict": "undecided"}, poison=None))).text
    assert "flag a fixed share of the images whether or not there is poison" in text
    assert "does not settle" in text


def test_truth_is_shown_only_where_it_is_known(make: Make) -> None:
    known, unknown = render(make()), render(make(poison=None))
    assert charts_of(known) == ["loss-flag", "loss-truth", "score-flag", "score-truth"]
    assert charts_of(unknown) == ["loss-flag", "score-flag"]
    assert 'class="badge poison"' in known
    assert 'class="badge poison"' not in unknown
    assert "Poison" in [t for t in Page(known).words if t == "Poison"]
    assert "Poison" not in Page(unknown).words


def test_names_from_outside_are_escaped(make: Make) -> None:
    evil = "<script>alert(1)</script>\" onerror='x' $x$ {{ 7*7 }}"
    record = {"data": {"name": evil, "skipped": [evil]}, "evidence": (evil,), "config": {evil: evil}}
    view = make(
        ids=tuple(f"{evil}{i}" for i in range(N)),
        classes=tuple(f"{evil}{i}" for i in range(K)),
        phases=(evil,) * 3 + ("$",) * 3,
        record={**record, "seconds": {evil: 1.0}, "versions": {evil: evil}, "device": {evil: evil}},
    )
    text = render(view)
    page = Page(text)
    assert page.all("script") == []
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert "&lt;script&gt;alert(1)" in text
    assert any(evil in (attributes["alt"] or "") for attributes in page.all("img"))
    assert "49" not in page.text.split("Most suspect")[0]


def test_paths_that_are_no_valid_text_can_be_written(make: Make) -> None:
    ids = ("caf\udce9.png", *make().ids[1:])
    index = np.array([0], dtype=np.int64)
    page = render(make(ids=ids, gallery_index=index, gallery=np.zeros((1, 4, 4, 1), dtype=np.uint8)))
    assert "caf\\udce9.png" in page.encode("utf-8").decode("utf-8")


def test_nothing_is_fetched(make: Make) -> None:
    text = render(make())
    assert "http:" not in text
    assert "https:" not in text
    assert "default-src 'none'" in text
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/png;base64,"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_references_inside_the_charts_hold(make: Make) -> None:
    text = render(make())
    ids = {attributes["id"] for _, attributes in Page(text).tags if "id" in attributes}
    wanted = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert {a or b for a, b in wanted} <= ids
    assert any("score-" in (a or b) for a, b in wanted)


def test_same_view_gives_same_bytes_and_leaves_matplotlib_alone(make: Make) -> None:
    # Not the backend: to read it makes matplotlib choose one.
    names = [name for name in matplotlib.rcParams if name != "backend"]
    before = [matplotlib.rcParams[name] for name in names]
    first = render(make())
    assert [matplotlib.rcParams[name] for name in names] == before
    with matplotlib.rc_context({"font.size": 30.0, "lines.linewidth": 9.0}):
        assert render(make()) == first


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_none_flagged(make: Make, share: float) -> None:
    page = render(make(flagged=np.full(N, share, dtype=np.bool_), poison=None))
    assert charts_of(page) == ["loss-flag", "score-flag"]
    assert f"{percent(share)}" in page
    assert "threshold" not in page
    assert "nothing to set" in Page(page).text


def test_without_losses_gallery_scores_or_images(make: Make) -> None:
    empty = np.zeros((0, N), dtype=np.float32)
    none = {"gallery_index": np.zeros(0, dtype=np.int64), "gallery": np.zeros((0, 8, 8, 3), dtype=np.uint8)}
    text = render(make(losses=empty, phases=(), **none))
    assert "No losses were recorded" in text
    assert "There are no images to show" in text
    assert charts_of(text) == ["score-flag", "score-truth"]
    text = render(make(n=0, losses=np.zeros((0, 0), dtype=np.float32), phases=(), **none))
    assert charts_of(text) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 7.0, 1e30, -1e-30])
def test_scores_without_spread_or_number(make: Make, value: float) -> None:
    page = render(make(scores=np.full(N, value, dtype=np.float32)))
    assert ("score-flag" in charts_of(page)) == bool(np.isfinite(value))


def test_images_without_a_score_are_counted(make: Make) -> None:
    scores = make().scores.copy()
    scores[[0, 150]] = np.nan
    text = Page(render(make(scores=scores, gallery_index=np.arange(5)))).text
    assert "Without a score, and not drawn: 2 images." in text
    assert "score none" in text


@pytest.mark.parametrize("fill", [np.nan, np.inf, 0.0, 1e-9, 1e30])
def test_losses_without_spread_or_number(make: Make, fill: float) -> None:
    losses = make().losses.copy()
    losses[2] = fill
    assert len(charts_of(render(make(losses=losses)))) == 4
    losses[:] = fill
    assert len(charts_of(render(make(losses=losses)))) == (4 if np.isfinite(fill) else 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery_keeps_the_pixels(make: Make, channels: int) -> None:
    gallery = np.random.default_rng(1).integers(0, 256, (5, 7, 9, channels), dtype=np.uint8)
    sources = [image["src"] or "" for image in Page(render(make(gallery=gallery))).all("img")]
    assert len(sources) == 5
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))))
    np.testing.assert_array_equal(shown.reshape(7, 9, channels), gallery[0])


def test_long_paths_show_their_end_and_keep_the_whole_in_the_title(make: Make) -> None:
    ids = tuple(f"{'folder/' * 30}{i:05d}.png" for i in range(N))
    text = render(make(ids=ids))
    row = make().gallery_index[0]
    assert f'title="{ids[row]}"' in text
    assert f"…{ids[row][-29:]}</bdi>" in text.replace("<wbr>", "")


def test_large_run_stays_small(make: Make) -> None:
    n, k, e = 50_000, 43, 60
    rng = np.random.default_rng(0)
    scores = rng.normal(size=n).astype(np.float32)
    page = render(
        make(
            n=n,
            k=k,
            losses=np.broadcast_to(rng.lognormal(size=(1, n)).astype(np.float32), (e, n)),
            phases=("isolate",) * 30 + ("retrain",) * 30,
            scores=scores,
            flagged=scores > 2,
            gallery_index=np.arange(40),
            gallery=rng.integers(0, 256, (40, 224, 224, 3), dtype=np.uint8),
        )
    )
    assert len(page.encode()) < 1_500_000
    assert "no more than 96 pixels a side" in page
    assert "The other 31 classes" in page


def test_many_epochs_are_thinned_out(make: Make) -> None:
    losses = np.random.default_rng(0).lognormal(size=(2000, N)).astype(np.float32)
    assert len(render(make(losses=losses, phases=("train",) * 2000))) < 250_000
