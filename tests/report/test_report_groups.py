"""Suspects in groups: what the album keeps, what the page shows of it and what it says is not shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from antibackdoor.errors import StorageError
from antibackdoor.report import StoredRun, album, render
from antibackdoor.report.album import pack, suspects_album, unpack

Make = Callable[..., StoredRun]
N, K = 200, 4


def pixels(n: int = N, side: int = 12) -> np.ndarray:
    """Grey noise; the first tenth has a white corner."""
    images = np.random.default_rng(0).integers(60, 120, (n, 3, side, side), dtype=np.uint8)
    images[: n // 10, :, -3:, -3:] = 255
    return images


def test_every_suspect_is_in_a_group_of_its_class(make: Make) -> None:
    view = make()
    made = suspects_album(view, pixels())
    assert np.array_equal(made.groups >= 0, view.flagged)
    for group in np.unique(made.groups[made.groups >= 0]):
        assert len(np.unique(view.labels[made.groups == group])) == 1
    assert set(np.flatnonzero(view.flagged)) <= set(made.images)
    for rows in made.beside.values():
        assert not view.flagged[list(rows)].any()
    row = int(np.flatnonzero(view.flagged)[0])
    shown = np.asarray(Image.open(BytesIO(made.images[row])))
    np.testing.assert_array_equal(shown, pixels()[row].transpose(1, 2, 0))


def test_what_a_group_has_in_common_lights_up(make: Make) -> None:
    made = suspects_album(make(), pixels())
    glow = np.asarray(Image.open(BytesIO(made.portraits[0][2]))).astype(int)
    glow = glow[:, :, 0] - glow[:, :, 2]
    assert glow[-3:, -3:].min() > glow[:-3, :-3].max()


def test_an_album_goes_round_and_another_is_refused(make: Make) -> None:
    view = make()
    made = suspects_album(view, pixels())
    arrays = pack(made)
    again = unpack(arrays, view)
    assert (again.beside, again.images, again.portraits) == (made.beside, made.images, made.portraits)
    assert render(view, again) == render(view, made)
    with pytest.raises(StorageError, match="another run"):
        unpack(arrays, make(n=100))
    with pytest.raises(StorageError, match="damaged"):
        unpack({name: values for name, values in arrays.items() if name != "sizes"}, view)


def test_the_class_that_the_network_sees_stands_beside_a_group(make: Make) -> None:
    view = make()
    seen = np.where(view.flagged, (view.labels + 1) % K, view.labels)
    page = Page(
        render(dataclasses.replace(view, seen=seen), suspects_album(dataclasses.replace(view, seen=seen), pixels()))
    )
    assert page.open == []
    assert "ordinary images: c1, which the network sees in" in page.text
    assert page.text.count("sees c1") >= int((view.flagged & (view.labels == 0)).sum())
    assert "which the network sees" not in Page(render(view, suspects_album(view, pixels()))).text


def test_what_was_found_in_a_class_stands_above_its_groups(make: Make) -> None:
    evidence = ("Class 'c0' is poisoned: a <b>mark</b>.", "Class 'c01' is in doubt.", "All else.")
    view = make(record={"evidence": evidence})
    assert view.findings == {0: evidence[0]}
    page = render(view, suspects_album(view, pixels()))
    assert page.count('<p class="finding">') == 1
    assert '<p class="finding">Class &#39;c0&#39; is poisoned: a &lt;b&gt;mark&lt;/b&gt;.</p>' in page
    assert Page(page).open == []


def test_classes_in_doubt_are_marked_and_show_their_most_suspect(make: Make) -> None:
    nobody = np.zeros(N, dtype=np.bool_)
    view = make(flagged=nobody, doubtful=(2,), record={"verdict": "undecided"})
    made = suspects_album(view, pixels())
    assert set(view.labels[made.groups >= 0]) == {2}
    text = Page(render(view, made)).text
    assert "none flagged, the 50 images with the highest scores · undecided class in doubt" in text
    # Where all are in doubt, a mark would tell nothing.
    everywhere = make(flagged=nobody, doubtful=(0, 1, 2, 3))
    assert (suspects_album(everywhere, pixels()).groups < 0).all()


def test_more_suspects_than_pictures(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(album, "PICTURES", 30)
    view = make(flagged=np.arange(N) % 2 == 0)
    made = suspects_album(view, pixels())
    text = Page(render(view, made)).text
    assert "30 of 100 images have a picture here; the other 70 are not shown. suspects.csv" in text
    assert "antibackdoor review RUN" in text
    monkeypatch.setattr(album, "GROUPS", 1)
    text = Page(render(view, suspects_album(view, pixels()))).text
    assert "more group" in text


def test_a_thousand_of_five_thousand_stay_within_some_megabytes(make: Make) -> None:
    n = 8000
    losses = np.ones((1, n), dtype=np.float32)
    view = make(n=n, flagged=np.arange(n) < 5000, losses=losses, phases=("train",))
    page = render(view, suspects_album(view, pixels(n, 48)))
    assert "of 5,000 images have a picture here" in page
    assert len(page.encode()) < 6_000_000


def test_links_work_from_the_folder_of_the_page(make: Make, tmp_path: Path) -> None:
    view = make()
    row = int(np.flatnonzero(view.flagged)[0])
    source, run = tmp_path / "my photos", tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    file = source / view.ids[row]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    config = {"data": {"source": str(source)}}
    view = make(record={"config": config})
    made = suspects_album(view, pixels())
    links = {a["href"] for a in Page(render(view, made, run)).all("a") if not (a["href"] or "").startswith("#")}
    assert links == {f"../../my%20photos/{view.ids[row]}", "suspects.csv", "run.json"}
    planted = make(record={"config": config | {"attack": {"name": "badnets"}}})
    assert "photos" not in " ".join(a["href"] or "" for a in Page(render(planted, made, run)).all("a"))


def test_names_from_outside_are_escaped(make: Make) -> None:
    evil = "<script>alert(1)</script>\" onerror='x'"
    view = make(ids=tuple(f"{evil}{i}" for i in range(N)), classes=tuple(f"{evil}{i}" for i in range(K)))
    page = Page(render(dataclasses.replace(view, seen=1 - view.labels % 2), suspects_album(view, pixels())))
    assert page.all("script") == []
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
