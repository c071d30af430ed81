"""The configuration of a grid: what it stands for, what it refuses, and that a key says all that decides a result."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from antibackdoor.attacks import ATTACKS
from antibackdoor.benchmark import GridConfig, read_records
from antibackdoor.benchmark.folder import GridFolder
from antibackdoor.benchmark.grid_members import Skip
from antibackdoor.config import OWN_TRAIN
from antibackdoor.errors import ConfigError, UnknownNameError

GRIDS = sorted((Path(__file__).parents[2] / "benchmarks" / "grids").glob("*.yaml"))


def titles(grid: GridConfig) -> list[str]:
    return [cell.title for cell in grid.cells()]


def test_the_product_always_has_no_attack_once_and_no_defence(grid):
    made = grid(attacks=["badnets", {"name": "blend", "rate": [0.1, 0.3]}], rates=[0.2, 0.4], seeds=[0, 1])
    seen = [(cell.attack_label, cell.rate, cell.defence_label) for cell in made.cells() if cell.seed == 1]
    attacks = [("none", None), ("badnets", 0.2), ("badnets", 0.4), ("blend", 0.1), ("blend", 0.3)]
    assert sorted(map(str, seen)) == sorted(
        str((*a, d)) for a, d in itertools.product(attacks, ("none", "abl-modified"))
    )
    assert len(made.cells()) == 2 * len(seen)
    for cell in made.cells():
        assert (cell.config.attack is None) == (cell.rate is None) == (cell.attack == "none")
        assert cell.is_control == (cell.attack_label == cell.defence_label == "none")


def test_naming_none_changes_nothing(grid):
    named = grid(attacks=["none", "badnets"], defences=["none", "abl-modified"])
    assert titles(named) == titles(grid(defences=["abl-modified"]))


def test_settings_of_a_data_set_are_its_own(grid, pets):
    data = [{"name": "a", **pets}, {"name": "b", **pets, "model": "resnet-18", "target": 2, "train": {"epochs": 7}}]
    attacks = ["badnets", {"name": "badnets", "label": "to-one", "target": 1}]
    cells = {
        (c.data, c.attack_label): c for c in grid(data=data, attacks=attacks).cells() if c.defence == "abl-modified"
    }
    assert cells["a", "badnets"].model == "wrn-10-1"
    assert cells["b", "badnets"].model == "resnet-18"
    assert cells["a", "badnets"].config.train.epochs == 1
    assert cells["b", "badnets"].config.train.epochs == 7
    assert cells["b", "badnets"].config.train.batch_size == 16
    assert "target" not in cells["a", "badnets"].config.attack.params
    assert cells["b", "badnets"].config.attack.params["target"] == 2
    assert cells["b", "to-one"].config.attack.params["target"] == 1


def test_one_value_need_not_be_a_list(grid):
    assert grid(rates=0.3, models="wrn-16-1", seeds=4) == grid(rates=[0.3], models=["wrn-16-1"], seeds=[4])


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:7"])
def test_a_device_need_not_be_on_this_machine(grid, device):
    assert grid(device=device).cells()[0].config.device == device


def test_skip_leaves_out_what_matches_all_of_a_rule(grid):
    made = grid(attacks=["badnets", "blend"], seeds=[0, 1], skip=[{"attack": "blend", "seed": [1]}])
    every = grid(attacks=["badnets", "blend"], seeds=[0, 1])
    assert [t for t in titles(every) if "blend" not in t or "seed 1" not in t] == titles(made)
    assert len(titles(made)) == len(titles(every)) - 2


def test_attacks_that_are_not_learned_from_so_few_images_can_be_left_out(grid):
    data = [{"name": "few", "source": "embedded", "limit": 6000}, {"name": "more", "source": "embedded", "limit": 7000}]
    attacks = ["badnets", {"name": "wanet", "target": 3}, {"name": "wanet", "k": 32, "label": "wanet, k 32"}]
    made = grid(data=data, attacks=attacks, rates=[0.1], seeds=[0], skip=[{"weak": True}])
    left = {(cell.data, cell.attack_label) for cell in made.cells() if cell.attack != "none"}
    every = {(name, label) for name in ("few", "more") for label in ("badnets", "wanet", "wanet, k 32")}
    assert every - left == {("few", "wanet")}
    # It may stand where there is nothing to leave out, and beside other conditions.
    assert titles(grid(skip=[{"weak": True}])) == titles(grid())
    kept = grid(data=data, attacks=attacks, rates=[0.1], seeds=[0], skip=[{"weak": True, "defence": "none"}]).cells()
    assert any(cell.attack_label == "wanet" and cell.data == "few" for cell in kept)


def test_the_marks_of_attacks_are_those_of_the_measurement():
    file = Path(__file__).parents[2] / "benchmarks/results/attacks_cifar10_cpu.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    images = {cell["attack"]: cell["n_train"] for cell in content["cells"]}
    for row in content["summary"]:
        name = row["attack"].partition("@")[0]
        assert ATTACKS.get(name).weak_up_to == (0 if row["asr"] >= 0.7 else images[row["attack"]]), name


def test_a_key_is_of_the_result_and_of_nothing_else(grid, pets, tmp_path):
    def keys(**changes: object) -> set[str]:
        return {cell.key for cell in grid(**changes).cells()}

    before = keys()
    assert len(before) == 4
    elsewhere = tmp_path / "else.npz"
    assert keys(data=[{"name": "pets", "source": str(elsewhere), "test": pets["test"]}]) == before
    assert keys(device="auto") == before
    # Written out defaults are the same result.
    full = {"name": "abl-modified", "isolation_epochs": 1, "unlearn_epochs": 1, "share": 0.01}
    assert keys(defences=[full]) == before
    for change in (
        {"train": {"epochs": 2, "batch_size": 16}},
        {"seeds": [1]},
        {"models": ["wrn-16-1"]},
        {"data": [{"name": "dogs", **pets}]},
        {"data": [{"name": "pets", **pets, "limit": 50}]},
    ):
        assert not keys(**change) & before, change
    assert len(keys(rates=[0.3]) & before) == 2
    assert len(keys(attacks=[{"name": "badnets", "size": 2}]) & before) == 2
    assert len(keys(defences=["abl-modified"]) & before) == 2


def test_what_is_shared_is_shared_by_the_cells_that_may(grid):
    cells = grid(attacks=["badnets"], seeds=[0, 1]).cells()
    poisoned = {(cell.seed, cell.attack): set() for cell in cells}
    for cell in cells:
        poisoned[cell.seed, cell.attack].add(cell.shared_poison)
        assert cell.control.is_control
        assert cell.control.key == next(c.key for c in cells if c.is_control and c.seed == cell.seed)
    assert all(len(names) == 1 for names in poisoned.values())
    assert poisoned[0, "none"] == {None}
    assert len({name for names in poisoned.values() for name in names}) == 3
    # Another length of the victim's training does not make another poisoned set, but another control.
    longer = next(c for c in grid(train={"epochs": 3}).cells() if c.rate)
    short = next(c for c in cells if c.rate and c.seed == 0)
    assert longer.shared_poison == short.shared_poison
    assert longer.shared_control != short.shared_control


def test_keys_are_the_same_in_another_process(values, grid, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(values()), encoding="utf-8")
    code = (
        "import sys, pathlib; from antibackdoor.benchmark import GridConfig\n"
        "print(*[cell.file for cell in GridConfig.load(pathlib.Path(sys.argv[1])).cells()])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [cell.file for cell in grid().cells()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [0]}, r"unknown setting 'sedes'\. Did you mean 'seeds'\?"),
        ({"data": [{"name": "a", "limt": 3}]}, r"unknown setting 'data\.0\.limt'\. Did you mean 'data\.0\.limit'\?"),
        ({"train": {"epoch": 3}}, r"unknown setting 'train\.epoch'\. Did you mean 'train\.epochs'\?"),
        ({"skip": [{"atack": "sig"}]}, r"unknown setting 'skip\.0\.atack'\. Did you mean 'skip\.0\.attack'\?"),
        ({"data": [{"name": "a", "train": {"epoch": 3}}]}, r"below data\.a\.train: 'epoch'\. Did you mean 'epochs'\?"),
        ({"data": [{"name": "a", "train": {"epochs": 0}}]}, r"^data\.a\.train\.epochs: .*got 0"),
        ({"attacks": ["badnet"]}, r"unknown attack 'badnet'\. Did you mean 'badnets'\?"),
        ({"attacks": [{"name": "badnets", "siez": 3}]}, r"below attacks\.badnets: 'siez'\. Did you mean 'size'\?"),
        ({"attacks": [{"name": "blend", "source": "x"}]}, r"below attacks\.blend: 'source'"),
        ({"defences": ["witness"]}, r"unknown defence 'witness'\. Did you mean 'witnesses'\?"),
        ({"defences": ["filter"]}, "'filter' is no longer in this package: 'witnesses'"),
        ({"defences": [{"name": "abl-modified", "gamma": -1}]}, r"^defences\.abl-modified\.gamma: must be"),
        ({"models": ["wrn-16-11"]}, r"unknown model 'wrn-16-11'\. Did you mean 'wrn-16-1'\?"),
        ({"data": []}, r"^data: empty"),
        ({"attacks": []}, r"^attacks: empty"),
        ({"defences": []}, r"^defences: empty"),
        ({"seeds": []}, r"^seeds: empty"),
        ({"rates": []}, r"^rates: empty"),
        ({"attacks": [{"name": "badnets", "rate": []}]}, r"^attacks\.0\.rate: empty"),
        ({"rates": [0]}, r"^rates: each must be above 0"),
        ({"rates": [0.1, 1.5]}, r"^rates: each must be above 0"),
        ({"rates": [True]}, r"^rates\.0: "),
        ({"seeds": [0, 0]}, r"^seeds: 0 stands there more than once"),
        ({"attacks": ["badnets", {"name": "badnets", "size": 5}]}, r"^attacks: 'badnets' stands there more than once"),
        ({"attacks": [{"name": "none", "size": 5}]}, r"^attacks\.none: .*no settings"),
        ({"defences": [{"name": "none", "label": "plain"}]}, r"^defences\.none: .*no settings"),
        ({"data": None}, r"^data: "),
        ({"rates": 1.5}, r"^rates: each must be above 0"),
        ({"seeds": "zero"}, r"^seeds\.0: "),
        ({"seeds": None}, r"^seeds: "),
        ({"device": "gpu"}, r"^device: 'gpu' is no device name; use auto, cpu, cuda"),
        ({"device": "cuda:"}, r"^device: 'cuda:' is no device name"),
        ({"device": "cpu:0 "}, r"^device: "),
        ({"defences": [{"name": "abl-modified", "label": "none"}]}, r"^defences\.abl-modified\.label: 'none' is what"),
        ({"attacks": [{"name": "badnets", "label": "none"}]}, r"^attacks\.badnets\.label: 'none' is what"),
    ],
)
def test_a_wrong_value_gets_one_line_with_its_path(values, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        GridConfig.parse(values(**changes))
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named(values):
    given = values()
    del given["data"]
    with pytest.raises(ConfigError, match="^data: missing"):
        GridConfig.parse(given)


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        ([{"attack": "badnet"}], "skip.0.attack: 'badnet'. Did you mean 'badnets'"),
        ([{"seed": 5}], "skip.0.seed: '5'"),
        ([{"attack": "none", "rate": 0.2}], "skip.0: no cell matches all of it"),
        ([{"data": "pets"}], "skip: it leaves no cell"),
    ],
)
def test_a_skip_that_cannot_be_meant(grid, skip, message):
    with pytest.raises(ConfigError) as caught:
        grid(skip=skip).cells()
    assert message in str(caught.value)


def test_sources_are_filled_in_and_looked_for(grid, pets, tmp_path):
    bare = grid(data=[{"name": "a"}, {"name": "b"}], skip=[{"data": "b"}])
    with pytest.raises(ConfigError, match=r"data\.a\.source: missing; give --data a=DIR"):
        bare.with_sources({})
    with pytest.raises(UnknownNameError, match="unknown data set 'c'"):
        bare.with_sources({"c": "x"})
    with pytest.raises(ConfigError, match=r"data\.a: .*gone is not there"):
        bare.with_sources({"a": str(tmp_path / "gone")})
    assert bare.with_sources({"a": pets["source"]}).data[0].source == pets["source"]
    assert bare.with_sources({"a": "embedded"}).data[0].source == "embedded"


def test_trusted_images_are_looked_for(grid, pets, tmp_path):
    def placed(trusted: str | None) -> GridConfig:
        return grid(data=[{"name": "pets", **pets, "trusted": trusted}]).with_sources({})

    gone = str(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"^data\.pets\.trusted: .*gone is not there"):
        placed(gone)
    for trusted in (None, OWN_TRAIN, pets["test"]):
        assert placed(trusted).data[0].trusted == trusted


def test_packages_that_are_not_installed_are_named_before_anything_runs(grid, pets, monkeypatch):
    installed = {"timm": False, "datasets": False}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed[name] else None)
    hub = grid(data=[{"name": "a", "source": "hub:a"}, {"name": "pets", **pets}])
    timm = grid(data=[{"name": "pets", **pets}, {"name": "b", **pets, "model": "timm:resnet10t"}])
    with pytest.raises(ConfigError, match=r"^data\.a: hub:a needs .*'datasets'.*antibackdoor\[hub\]"):
        hub.with_sources({})
    with pytest.raises(ConfigError, match=r"^models: timm:resnet10t needs .*'timm'.*antibackdoor\[models\]"):
        timm.with_sources({})
    for name, made in (("a", hub), ("b", timm)):
        made.model_copy(update={"skip": (Skip(data=(name,)),)}).with_sources({})
    installed |= {"timm": True, "datasets": True}
    for made in (hub, timm):
        made.with_sources({})


def test_no_place_of_this_machine_is_in_what_is_written(grid, pets):
    made = grid()
    folder = str(Path(pets["source"]).parent)
    assert folder not in yaml.safe_dump(made.dump())
    assert all(folder not in yaml.safe_dump(cell.settings) for cell in made.cells())
    open_ = grid(data=["embedded"])
    assert open_.dump()["data"][0]["source"] == "embedded"
    beside = grid(data=[{"name": "a", "source": "embedded", "trusted": folder, "test": pets["test"]}])
    assert folder not in yaml.safe_dump(beside.dump())
    assert GridConfig.parse(open_.dump()).dump() == open_.dump()


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_the_grids_of_the_repository_are_valid(path):
    grid = GridConfig.load(path)
    cells = grid.cells()
    assert len({cell.file for cell in cells}) == len(cells)
    with_data = grid.with_sources({data.name: "embedded" for data in grid.data})
    assert [cell.key for cell in with_data.cells()] == [cell.key for cell in cells]


@pytest.mark.parametrize(("name", "renamed"), [("small", 9), ("paper_cpu", 12), ("figures_cpu", 28)])
def test_records_of_a_defence_that_was_renamed_since_are_read_and_found(name, renamed):
    folder = GridFolder(GRIDS[0].parents[1] / "results" / name)
    records = read_records(folder.out)
    assert sum(record["cell"]["defence"] == "abl-modified" for record in records) == renamed
    assert all(record["config"]["defence"]["name"] == record["cell"]["defence"] for record in records)
    assert "abl" not in {record["cell"]["defence_label"] for record in records}
    # They keep their files and keys.
    cells = GridConfig.load(GRIDS[0].parent / f"{name}.yaml").cells()
    clean = [cell for cell in cells if (cell.attack, cell.defence) == ("none", "abl-modified")]
    assert clean
    assert [folder.record_of(cell)["cell"] for cell in clean] == [cell.names for cell in clean]


def test_the_paper_table_is_whole():
    cells = GridConfig.load(GRIDS[0].parent / "paper.yaml").cells()
    # Three sets, three seeds, ten attacks and none, six defences and none.
    assert len(cells) == 3 * 3 * 11 * 7
    assert {(cell.data, cell.model) for cell in cells} == {
        ("cifar10", "wrn-16-1"),
        ("gtsrb", "wrn-16-1"),
        ("imagenette", "resnet-34"),
    }


def test_a_file_that_is_no_grid(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file"):
        GridConfig.load(tmp_path / "gone.yaml")
    for text, message in (("[1, 2", "cannot be read as YAML"), ("- 1\n", "must hold settings by name")):
        (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            GridConfig.load(tmp_path / "bad.yaml")


def test_records_of_before_there_were_decisions_keep_their_names():
    records = Path(__file__).parents[2] / "benchmarks" / "results" / "small" / "cells"
    cells = GridConfig.load(Path(__file__).parents[2] / "benchmarks" / "grids" / "small.yaml").cells()
    assert [(records / cell.file).is_file() for cell in cells if cell.is_control] == [True] * 3
    data = {"name": "embedded", "source": "embedded"}
    parsed = [
        GridConfig.parse({"data": [{**data, "decisions": path}], "attacks": ["badnets"], "defences": ["none"]})
        for path in (None, "/somewhere/decisions.csv")
    ]
    settings = [grid.cells()[0].settings["data"] for grid in parsed]
    assert "decisions" not in settings[0]
    assert settings[1]["decisions"] == "decisions.csv"


def test_images_of_a_grid_are_known_to_be_clean_so_controls_have_trusted_ones():
    given = {"attacks": ["badnets"], "rates": [0.1], "defences": ["nad"]}
    cells = GridConfig.parse({**given, "data": ["embedded"]}).cells()
    assert {cell.config.data.trusted for cell in cells} == {OWN_TRAIN}
    data = {"name": "embedded", "source": "embedded", "trusted": "/somewhere/clean"}
    named = GridConfig.parse({**given, "data": [data]}).cells()
    assert {cell.settings["data"]["trusted"] for cell in named} == {"clean"}
    assert {cell.key for cell in named}.isdisjoint({cell.key for cell in cells})
