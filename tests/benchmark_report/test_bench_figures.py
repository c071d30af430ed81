from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from antibackdoor.benchmark.figure_epochs import losses, precision_by_epoch
from antibackdoor.benchmark.figure_overview import heat_maps, scatter
from antibackdoor.benchmark.figure_sweeps import by_gamma, by_rate, by_share, by_turning_epoch
from antibackdoor.benchmark.figures import write_figures
from antibackdoor.errors import StorageError

Record = dict[str, Any]
Make = Callable[..., Record]
Grid = Callable[..., list[Record]]
Only = Callable[..., None]


def names(records: list[Record], out: Path) -> set[str]:
    """The figures drawn, by their names; each is there as PNG and SVG, and nothing else but the note of them is."""
    written = write_figures(records, out)
    found = {path.stem if path.suffix in (".png", ".svg") else path.name for path in written}
    assert len(written) == 2 * len(found)
    there = (out / "figures").iterdir() if (out / "figures").exists() else ()
    assert sorted(written) == sorted(path for path in there if path.name != ".written.json")
    return found


def texts(out: Path, name: str) -> list[str]:
    """Every text of a figure, in the order of drawing."""
    tree = ElementTree.parse(out / "figures" / f"{name}.svg")
    return ["".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Only:
    """Leaves out the kinds of figures that a test does not look at: each takes most of a second."""
    return lambda *kinds: monkeypatch.setattr("antibackdoor.benchmark.figures._ALL", kinds)


BASE = {"heat-map", "accuracy-against-attack-success"}
CURVES = {f"{kind}-{defence}" for kind in ("precision-by-epoch", "loss-curves") for defence in ("none", "abl")}


def test_a_plain_grid_gives_the_plain_figures(grid: Grid, tmp_path: Path) -> None:
    records = grid(attacks=("none", "badnets"), defences=("none", "nad", "abl"), seeds=(0, 1))
    # nad repairs undefended training: its first phase is that of none, and is not drawn twice.
    assert names(records, tmp_path) == BASE | CURVES
    with Image.open(tmp_path / "figures" / "heat-map.png") as image:
        assert image.format == "PNG"
        assert image.width > 600


def test_no_attack_leaves_the_accuracy_alone(grid: Grid, tmp_path: Path) -> None:
    assert names(grid(attacks=("none",), seeds=(0,)), tmp_path) == {"heat-map"}
    shown = texts(tmp_path, "heat-map")
    assert "Clean accuracy, %" in shown
    assert "Attack success, %" not in shown


def test_nothing_is_drawn_from_failures(record: Make, tmp_path: Path) -> None:
    assert names([record(error="no luck")], tmp_path) == set()
    assert names([], tmp_path) == set()


def test_the_heat_map_writes_the_means_and_what_was_given(record: Make, only: Only, tmp_path: Path) -> None:
    only(heat_maps)
    records = [
        record(seed=0, ca=0.9, asr=1.0),
        record(seed=1, ca=0.8, asr=0.5),
        record(defence="nad", ca=0.5, asr=0.123),
    ]
    names(records, tmp_path)
    shown = texts(tmp_path, "heat-map")
    for text in ("75.0", "85.0", "12.3", "50.0", "nad [5 % trusted]", "badnets 10 %", "control", "1.0"):
        assert text in shown


def test_a_missing_cell_is_a_dash_in_the_heat_map(record: Make, only: Only, tmp_path: Path) -> None:
    only(heat_maps)
    names([record(), record(defence="abl"), record(attack="sig")], tmp_path)
    assert texts(tmp_path, "heat-map").count("–") == 2  # attack success and clean accuracy


def test_the_scatter_names_defences_and_attacks(grid: Grid, only: Only, tmp_path: Path) -> None:
    only(scatter)
    names(grid(attacks=("badnets", "sig"), seeds=(0,)), tmp_path)
    shown = texts(tmp_path, "accuracy-against-attack-success")
    for text in ("Defence", "control", "none", "nad [5 % trusted]", "witnesses", "Attack", "badnets", "sig"):
        assert shown.count(text) == 1


def test_rates_are_drawn_where_an_attack_has_several(grid: Grid, only: Only, tmp_path: Path) -> None:
    only(by_rate)
    rates = (0.01, 0.1, 0.7)
    records = grid(attacks=("none", "badnets"), rates=rates, defences=("none", "witnesses"), seeds=(0,))
    records += grid(attacks=("sig",), defences=("none",), seeds=(0,))
    assert "poisoning-rate" in names(records, tmp_path)
    shown = texts(tmp_path, "poisoning-rate")
    assert [text for text in shown if text in {"badnets", "sig"}] == ["badnets"] * 2
    steps = [text for text in shown if text in {"1", "10", "70"}]
    assert steps == ["1", "10", "70"] * 2


def test_rates_of_a_class_and_of_the_set_are_two_charts(grid: Grid, only: Only, tmp_path: Path) -> None:
    only(by_rate)
    records = grid(attacks=("sig",), rates=(0.11, 0.22, 0.55, 0.77), defences=("none",), seeds=(0,))
    for entry in records[2:]:
        entry["config"]["attack"]["rate_of"] = "class"
    names(records, tmp_path)
    shown = texts(tmp_path, "poisoning-rate")
    steps = [text for text in shown if text in {"11", "22", "55", "77"}]
    assert steps == ["11", "22"] * 2 + ["55", "77"] * 2
    assert shown.count("Poisoned images, %") == shown.count("Poisoned images of the class, %") == 2


def test_figures_that_are_no_longer_drawn_are_removed_and_no_others(grid: Grid, tmp_path: Path) -> None:
    records = grid(attacks=("badnets",), defences=("none", "abl"), seeds=(0,))
    assert names(records, tmp_path) == BASE | CURVES
    figures, outside = tmp_path / "figures", tmp_path / "mine.png"
    for path in (outside, figures / "mine.png"):
        path.write_bytes(b"mine")
    noted = json.loads((figures / ".written.json").read_text(encoding="utf-8"))
    (figures / ".written.json").write_text(json.dumps([*noted, "../mine.png", 3, "gone.svg"]), encoding="utf-8")
    write_figures([entry for entry in records if entry["cell"]["defence"] == "none"], tmp_path)
    left = {path.stem for path in figures.glob("*.[ps][nv]g")}
    assert left == BASE | {"precision-by-epoch-none", "loss-curves-none", "mine"}
    assert outside.read_bytes() == (figures / "mine.png").read_bytes() == b"mine"
    write_figures([], tmp_path)
    assert {path.name for path in figures.iterdir()} == {"mine.png", ".written.json"}


def test_a_damaged_note_of_what_was_drawn_removes_nothing(record: Make, tmp_path: Path) -> None:
    write_figures([record()], tmp_path)
    (tmp_path / "figures" / ".written.json").write_text("[", encoding="utf-8")
    before = len(list((tmp_path / "figures").iterdir()))
    write_figures([], tmp_path)
    assert len(list((tmp_path / "figures").iterdir())) == before


def test_what_was_flagged_is_drawn_by_rate(grid: Grid, only: Only, tmp_path: Path) -> None:
    only(by_rate)
    plain = grid(attacks=("badnets",), rates=(0.05, 0.1), defences=("none", "nad"), seeds=(0,), recall=0.0)
    assert "isolation-by-rate" not in names(plain, tmp_path)
    flagging = grid(attacks=("badnets",), rates=(0.05, 0.1), defences=("witnesses",), seeds=(0,))
    assert "isolation-by-rate" in names(plain + flagging, tmp_path)
    shown = texts(tmp_path, "isolation-by-rate")
    # The synthetic witnesses has a precision and no recall.
    assert "Poison among the flagged, %" in shown
    assert "Flagged among the poison, %" not in shown
    assert shown.count("witnesses") == 1
    assert "nad [5 % trusted]" not in shown
    names([*plain, *flagging, *grid(attacks=("badnets",), rates=(0.05, 0.1), defences=("abl",))], tmp_path)
    assert "Flagged among the poison, %" in texts(tmp_path, "isolation-by-rate")


def titled(out: Path, name: str) -> str:
    """All texts of a figure in one line: a title may be broken into several."""
    return " ".join(texts(out, name))


def test_titles_say_how_many_seeds_are_behind_a_figure_and_what_bars_are(
    grid: Grid, only: Only, tmp_path: Path
) -> None:
    only(scatter, by_rate, heat_maps, losses)
    rates = (0.05, 0.1)
    names(grid(attacks=("badnets",), rates=rates, defences=("none", "abl"), seeds=(0, 1, 2)), tmp_path / "a")
    for name in ("accuracy-against-attack-success", "poisoning-rate", "isolation-by-rate"):
        assert "cifar10, wrn-16-1 (n = 3, bars: standard deviation)" in titled(tmp_path / "a", name)
    assert "cifar10, wrn-16-1 (n = 3)" in titled(tmp_path / "a", "heat-map")
    assert "(n = 3, bands: standard deviation): abl" in titled(tmp_path / "a", "loss-curves-abl")
    only(scatter)
    names(grid(seeds=(0,)), tmp_path / "b")
    assert "cifar10, wrn-16-1 (n = 1)" in titled(tmp_path / "b", "accuracy-against-attack-success")
    mixed = [*grid(defences=("none",), seeds=(0,)), *grid(defences=("abl",))]
    only(scatter, losses, precision_by_epoch)
    names(mixed, tmp_path / "c")
    assert "(n = 1 to 3, bars: standard deviation)" in titled(tmp_path / "c", "accuracy-against-attack-success")
    assert "(n = 1): none" in titled(tmp_path / "c", "loss-curves-none")
    assert "(n = 3, bands: standard deviation): abl" in titled(tmp_path / "c", "precision-by-epoch-abl")


@pytest.mark.parametrize(
    ("params", "figure"),
    [
        ([{"gamma": 0.1}, {"gamma": 0.5}], "precision-by-gamma"),
        ([{"isolation_epochs": 5}, {"isolation_epochs": 10}], "precision-by-turning-epoch"),
        ([{"turning_epoch": 2}, {"turning_epoch": 10}], "precision-by-turning-epoch"),
        ([{"share": share} for share in (0.01, 0.05, 0.1, 0.2)], "isolation-share"),
    ],
)
def test_what_a_grid_varies_is_drawn(
    grid: Grid, only: Only, tmp_path: Path, params: list[dict[str, float]], figure: str
) -> None:
    only(by_gamma, by_turning_epoch, by_share)
    sweeps = {"precision-by-gamma", "precision-by-turning-epoch", "isolation-share"}
    records = grid(attacks=("badnets",), defences=("none", "abl"), seeds=(0,), params=params)
    assert names(records, tmp_path) & sweeps == {figure}
    steps = {"share": ["1", "5", "10", "20"]}
    field = next(iter(params[0]))
    expected = steps.get(field, [f"{own[field]:g}" for own in params])
    shown = texts(tmp_path, figure)
    assert [text for text in shown if text in expected][: len(expected)] == expected


def test_two_hyper_parameters_at_once_are_charts_apart(grid: Grid, only: Only, tmp_path: Path) -> None:
    only(by_gamma)
    params = [{"gamma": gamma, "isolation_epochs": epochs} for gamma in (0.1, 0.5) for epochs in (5, 10)]
    names(grid(attacks=("badnets",), defences=("none", "abl"), seeds=(0,), params=params), tmp_path)
    titles = [text for text in texts(tmp_path, "precision-by-gamma") if text.startswith("abl")]
    assert titles == ["abl, isolation_epochs=5", "abl, isolation_epochs=10"]


def test_several_data_sets_have_figures_of_their_own(grid: Grid, tmp_path: Path) -> None:
    found = names(grid(data=("a/b", "A B"), attacks=("none",), seeds=(0,)), tmp_path)
    assert found == {"heat-map-a-b-wrn-16-1", "heat-map-a-b-wrn-16-1-2"}


def test_curves_with_gaps_are_drawn(record: Make, tmp_path: Path) -> None:
    short, gaps = record(seed=1), record(seed=0)
    short["curves"]["loss_poison"] = [1.0, 0.5]
    gaps["curves"]["loss_poison"] = [1.0, None, float("nan"), 0.1, 0.1, 0.1]
    gaps["curves"]["precision"] = {}
    short["curves"]["precision"] = None
    # Losses are there; precision is not, so it has no figure.
    assert names([short, gaps], tmp_path) == BASE | {"loss-curves-none"}


def test_labels_with_mathematics_and_markup_are_drawn_as_they_are(record: Make, only: Only, tmp_path: Path) -> None:
    only(heat_maps)
    names([record(defence="none"), record(defence="abl", label="a$b_{ <i>&")], tmp_path)
    assert "a$b_{ <i>&" in texts(tmp_path, "heat-map")


def test_many_defences_and_attacks(record: Make, tmp_path: Path) -> None:
    records = [record(attack=f"attack{a}", defence=f"defence{d}") for a in range(16) for d in range(12)]
    for one in records:
        one["curves"] = None
    assert names(records, tmp_path) == BASE


def test_figures_do_not_depend_on_the_users_settings_and_leave_them_alone(record: Make, tmp_path: Path) -> None:
    records = [record(), record(defence="abl")]
    first = [path.read_bytes() for path in write_figures(records, tmp_path / "a")]
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        second = [path.read_bytes() for path in write_figures(records, tmp_path / "b")]
        assert matplotlib.rcParams["font.size"] == 30
    assert first == second


def test_figures_load_nothing(grid: Grid, tmp_path: Path) -> None:
    names(grid(attacks=("badnets",), seeds=(0,)), tmp_path)
    for path in (tmp_path / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        # Only names of vocabularies and parts of the file itself may be pointed at; images are inside it.
        links = re.findall(r'(?:href|src)="([^"]*)"', text)
        assert all(link.startswith(("#", "data:")) for link in links)


def test_a_folder_that_cannot_be_written_is_one_clear_line(record: Make, tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file")
    with pytest.raises(StorageError, match="cannot write") as caught:
        write_figures([record()], tmp_path)
    assert "\n" not in str(caught.value)
