"""What a run shows of itself in Python and in a notebook, and the table of its suspects."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
from pathlib import Path

import pytest
import torch
from html_page import Page
from PIL import Image

from antibackdoor.errors import ConfigError
from antibackdoor.pipeline import Result
from antibackdoor.types import Isolation, Metrics, Outcome, RunRecord

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def make(blobs):
    """Makes results of 6,000 images in 10 classes, of which the first 30 of class 1 are flagged."""

    def call(verdict: str = "poisoned", flagged: int = 30, doubtful: tuple[int, ...] = ()) -> Result:
        data = blobs(6000, 10, height=8, width=8)
        data = dataclasses.replace(
            data,
            classes=(EVIL, *data.classes[1:]),
            ids=tuple(f"{EVIL}/{row}" if row < 20 else name for row, name in enumerate(data.ids)),
        )
        mask = torch.zeros(6000, dtype=torch.bool)
        mask[torch.arange(1, 6000, 10)[:flagged]] = True
        scores = torch.linspace(0, 1, 6000) + 2.0 * mask
        isolation = Isolation(scores, mask, verdict, (f"Class {EVIL} is odd.",), doubtful)  # type: ignore[arg-type]
        metrics = Metrics(ca=0.9021, n_test=100, n_flagged=flagged, n_train=6000)
        record = RunRecord({}, {}, {}, {}, {}, metrics, isolation.verdict, isolation.evidence)
        return Result(None, isolation, record, Outcome(None, isolation, ()), data, None)

    return call


def test_what_is_shown_of_it_is_short(make) -> None:
    result = make()
    assert repr(result) == (
        "Result(Isolation('poisoned', 30 of 6,000 images flagged), "
        "ImageSet('blobs', 6,000 images of 3x8x8, 10 classes), scan)"
    )
    assert repr(result.isolation) == "Isolation('poisoned', 30 of 6,000 images flagged)"
    assert len(repr(result.outcome)) < 200


def test_a_notebook_shows_verdict_classes_and_suspects(make) -> None:
    html = make()._repr_html_()
    page = Page(html)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.startswith("poisoned · 30 of 6,000 images flagged · Clean accuracy 90.2 %")
    assert f"Class {EVIL} is odd." in page.text
    rows = re.findall(r"<tr><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td><td[^>]*>(.*?)</td></tr>", html)
    assert rows[0] == ("c01", "600", "30", "poisoned")
    assert len(rows) == 10
    shown = [attributes["alt"] for attributes in page.all("img")]
    assert shown == [f"blobs/{row:05d}" for row in range(291, 51, -10)]
    pictures = [str(attributes["src"]).removeprefix("data:image/png;base64,") for attributes in page.all("img")]
    assert {Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures} == {(8, 8)}
    assert "http" not in html
    assert len(html) < 60_000


def test_where_nothing_is_flagged_the_classes_in_doubt_are_shown(make) -> None:
    page = Page(make("undecided", 0, (3,))._repr_html_())
    assert "Nothing is flagged; the most suspect images of the classes in doubt:" in page.text
    assert {str(attributes["alt"])[-1] for attributes in page.all("img")} == {"3"}
    page = Page(make("no sign of poison", 0)._repr_html_())
    assert "the images with the highest scores:" in page.text
    assert page.all("img")[0]["alt"] == "blobs/05999"


def test_names_from_outside_are_escaped_everywhere(make) -> None:
    result = make("undecided", 0, (0,))
    result = dataclasses.replace(
        result, isolation=dataclasses.replace(result.isolation, scores=-result.isolation.scores)
    )
    for html in (result._repr_html_(), result.isolation._repr_html_()):
        page = Page(html)
        assert page.open == []
        assert not {tag for tag, _ in page.tags} - {
            *("div", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "figure", "img"),
            "figcaption",
        }
    assert Page(result._repr_html_()).all("img")[0]["alt"] == f"{EVIL}/0"


def test_suspects_as_a_table(make, monkeypatch: pytest.MonkeyPatch) -> None:
    result = make(doubtful=(2,))
    frame = result.suspects()
    assert list(frame.columns) == ["id", "label", "score", "suspect", "class_verdict", "row"]
    assert len(frame) == 30
    assert frame.score.is_monotonic_decreasing
    assert set(frame.label) == {"c01"}
    assert set(frame.class_verdict) == {"poisoned"}
    assert [result.data.ids[row] for row in frame.row] == frame.id.tolist()
    whole = result.suspects(everything=True)
    assert (len(whole), int(whole.suspect.sum())) == (6000, 30)
    assert whole[whole.label == "c02"].class_verdict.unique().tolist() == ["undecided"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="tables"):
        result.suspects()


def test_the_page_is_part_of_the_package() -> None:
    assert (Path(sys.modules["antibackdoor"].__file__ or "").parent / "report" / "notebook.html.j2").is_file()
