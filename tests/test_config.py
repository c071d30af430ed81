from __future__ import annotations

import copy
import math

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from antibackdoor.config import Choice, DataConfig, PoisonConfig, RunConfig, TrainConfig, apply_settings, set_path
from antibackdoor.errors import ConfigError, UnknownNameError

names = st.text("abcdefgh-_", min_size=1, max_size=8)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
params = st.dictionaries(names.filter(lambda name: name not in {"name", "params", "rate", "seed"}), values, max_size=3)
positive = st.floats(1e-9, 1e9)
configs = st.builds(
    RunConfig,
    data=st.builds(
        DataConfig,
        source=st.text(max_size=10),
        test=st.none() | st.text(max_size=10),
        image_size=st.none() | st.integers(8, 100),
        limit=st.none() | st.integers(2, 1000),
        holdout=st.floats(0, 0.99),
        skip_bad=st.booleans(),
    ),
    model=names,
    attack=st.none()
    | st.builds(PoisonConfig, name=names, params=params, rate=st.floats(0, 1), seed=st.none() | st.integers()),
    defence=st.builds(Choice, name=names, params=params),
    train=st.builds(
        TrainConfig,
        epochs=st.integers(1, 500),
        lr=positive,
        momentum=st.floats(0, 0.99),
        schedule=st.sampled_from(["constant", "cosine", "multistep", "onecycle"]),
        augment=st.lists(st.sampled_from(["crop", "cutout", "flip"]), max_size=3).map(tuple),
    ),
    seed=st.integers(),
)


@given(configs)
def test_a_configuration_goes_round_through_plain_values_and_yaml(config):
    assert RunConfig.parse(config.dump()) == config
    assert RunConfig.parse(yaml.safe_load(config.to_yaml())) == config


def test_a_file_goes_round(tmp_path):
    config = RunConfig.parse({"attack": {"name": "badnets", "rate": 0.05, "size": 4}, "defence": "none", "seed": 3})
    path = tmp_path / "run.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.load(path) == config
    path.write_text("", encoding="utf-8")
    assert RunConfig.load(path) == RunConfig()


def test_hyper_parameters_stand_beside_the_name():
    config = RunConfig.parse({"defence": {"name": "abl-modified", "gamma": 0.4}, "attack": "sig"})
    assert config.defence == Choice(name="abl-modified", params={"gamma": 0.4})
    assert config.attack == PoisonConfig(name="sig")
    assert config.dump()["defence"] == {"name": "abl-modified", "gamma": 0.4}
    assert config.dump()["attack"] == {"name": "sig", "rate": 0.1, "rate_of": "dataset", "seed": None}
    nested = RunConfig.parse({"defence": {"name": "abl-modified", "params": {"gamma": 0.4}}})
    assert nested.defence == config.defence


def test_defaults():
    config = RunConfig()
    assert (config.attack, config.defence.name, config.model, config.seed) == (None, "witnesses", "auto", 0)
    assert RunConfig.parse({}) == config


def test_configurations_do_not_change():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        RunConfig().seed = 3


@pytest.mark.parametrize(
    ("given_values", "wrong", "nearest"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"train": {"epoch": 3}}, "train.epoch", "train.epochs"),
        ({"data": {"sorce": "x"}}, "data.sorce", "data.source"),
        ({"defence": {"name": "abl-modified", "params": {}, "nam": 1}}, "defence.nam", "defence.name"),
        ({"attack": {"name": "sig", "params": {}, "rat": 1}}, "attack.rat", "attack.rate"),
    ],
)
def test_an_unknown_key_names_the_nearest(given_values, wrong, nearest):
    with pytest.raises(UnknownNameError) as caught:
        RunConfig.parse(given_values)
    assert (caught.value.given, caught.value.nearest) == (wrong, nearest)


@pytest.mark.parametrize(
    ("given_values", "path"),
    [
        ({"seed": "one"}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"train": 3}, "train"),
        ({"train": {"epochs": "many"}}, "train.epochs"),
        ({"train": {"epochs": 0}}, "train.epochs"),
        ({"train": {"epochs": 2.5}}, "train.epochs"),
        ({"train": {"batch_size": 1}}, "train.batch_size"),
        ({"train": {"lr": 0}}, "train.lr"),
        ({"train": {"lr": math.inf}}, "train.lr"),
        ({"train": {"lr": math.nan}}, "train.lr"),
        ({"train": {"momentum": 1.0}}, "train.momentum"),
        ({"train": {"weight_decay": -1}}, "train.weight_decay"),
        ({"train": {"schedule": "linear"}}, "train.schedule"),
        ({"train": {"augment": ["crop", "turn"]}}, "train.augment.1"),
        ({"train": {"precision": "fp16"}}, "train.precision"),
        ({"data": {"holdout": 1}}, "data.holdout"),
        ({"data": {"limit": 1}}, "data.limit"),
        ({"data": {"source": 3}}, "data.source"),
        ({"data": None}, "data"),
        ({"attack": {"name": "sig", "rate": "high"}}, "attack.rate"),
        ({"attack": {"name": "sig", "rate_of": "all"}}, "attack.rate_of"),
        ({"attack": {"rate": 0.1}}, "attack.name"),
        ({"attack": 3}, "attack"),
        ({"defence": {}}, "defence.name"),
        ({"defence": ["abl-modified"]}, "defence"),
        ({"defence": {"name": "abl-modified", "params": 3}}, "defence.params"),
        ({"model": 3}, "model"),
        ({"seed": True}, "seed"),
        ({"train": {"epochs": True}}, "train.epochs"),
        ({"train": {"lr": True}}, "train.lr"),
        ({"train": {"weight_decay": False}}, "train.weight_decay"),
        ({"data": {"limit": True}}, "data.limit"),
        ({"data": {"image_size": True}}, "data.image_size"),
        ({"attack": {"name": "sig", "rate": True}}, "attack.rate"),
        ({"attack": {"name": "sig", "seed": False}}, "attack.seed"),
    ],
)
def test_a_wrong_value_names_its_path(given_values, path):
    with pytest.raises(ConfigError, match=rf"^{path}: .*got "):
        RunConfig.parse(given_values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "cannot be read as YAML"),
        ("- 1\n- 2", "must hold settings by name, not a list"),
        ("word", "must hold settings by name, not a str"),
        ("!!python/object/apply:os.getcwd []", "cannot be read as YAML"),
        ("1: 2", "1"),
        ("train: {lr: 1, lr2: 3}", "train.lr2"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        RunConfig.load(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="no configuration file at"):
        RunConfig.load(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        RunConfig.load(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        RunConfig.load(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.epochs=3", ("train", "epochs"), 3),
        ("train.lr=0.05", ("train", "lr"), 0.05),
        ("train.augment=[crop, flip]", ("train", "augment"), ["crop", "flip"]),
        ("train.augment=[]", ("train", "augment"), []),
        ("data.test=null", ("data", "test"), None),
        ("data.skip_bad=true", ("data", "skip_bad"), True),
        ("seed=7", ("seed",), 7),
        ("defence.gamma=0.4", ("defence", "gamma"), 0.4),
        ("attack.name=sig", ("attack", "name"), "sig"),
        ("defence.signal=a=b", ("defence", "signal"), "a=b"),
        (" train.epochs =3", ("train", "epochs"), 3),
        ("model=", ("model",), None),
    ],
)
def test_settings_reach_every_place(setting, path, value):
    merged = apply_settings(RunConfig().dump(), [setting])
    for key in path:
        merged = merged[key]
    assert merged == value


def test_settings_become_a_configuration():
    settings = ["train.lr=1e-3", "attack.name=badnets", "attack.rate=0.05", "attack.size=4", "train.augment=[flip]"]
    config = RunConfig.parse(apply_settings(RunConfig().dump(), settings))
    assert config.train.lr == 1e-3
    assert config.train.augment == ("flip",)
    assert config.attack == PoisonConfig(name="badnets", rate=0.05, params={"size": 4})
    assert config.train.epochs == TrainConfig().epochs


def test_the_last_setting_holds():
    assert apply_settings({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}


@pytest.mark.parametrize("setting", ["train.epochs", "=3", "train.=3", ".epochs=3", "train..epochs=3", ""])
def test_settings_without_a_path_or_a_value(setting):
    with pytest.raises(ConfigError, match=r"^--set .*expected section\.key=value"):
        apply_settings({}, [setting])


def test_settings_that_cannot_be_laid_over():
    with pytest.raises(ConfigError, match="^--set 'train.lr=.*the value cannot be read"):
        apply_settings({}, ["train.lr=[1"])
    with pytest.raises(ConfigError, match=r"seed\.x.*'seed' holds a value, not settings"):
        apply_settings({"seed": 3}, ["seed.x=1"])


@pytest.mark.parametrize("setting", ["a.b.c=2", "a.x=2", "a.b.d.e=3", "z=1"])
def test_the_given_values_are_not_changed(setting):
    given_values = {"a": {"b": {"c": 1, "d": {}}}, "z": 0}
    before = copy.deepcopy(given_values)
    apply_settings(given_values, [setting])
    assert given_values == before


@given(st.dictionaries(names, values, max_size=4))
def test_no_settings_change_nothing(plain):
    assert apply_settings(plain, []) == plain


def test_another_member_drops_the_hyper_parameters_of_the_last():
    before = {"attack": {"name": "badnets", "rate": 0.05, "rate_of": "class", "seed": 1, "size": 4}}
    merged = apply_settings(before, ["attack.name=sig", "attack.delta=20"])
    assert merged == {"attack": {"name": "sig", "rate": 0.05, "rate_of": "class", "seed": 1, "delta": 20}}
    assert apply_settings(before, ["attack.name=badnets"]) == before
    assert before["attack"]["size"] == 4


def test_a_family_given_by_name_alone_takes_hyper_parameters():
    assert apply_settings({"defence": "abl-modified"}, ["defence.gamma=0.4"]) == {
        "defence": {"name": "abl-modified", "gamma": 0.4}
    }


def test_a_path_is_set_in_place():
    plain = {}
    set_path(plain, "train.epochs", 3)
    set_path(plain, "seed", 1)
    assert plain == {"train": {"epochs": 3}, "seed": 1}
    with pytest.raises(ConfigError, match=r"^seed\.x: 'seed' holds a value"):
        set_path(plain, "seed.x", 1)


def test_what_another_defence_was_given_does_not_stay_with_a_new_one():
    values = {"defence": {"name": "spectral", "rate": 0.1}, "attack": {"name": "sig", "rate": 0.2, "delta": 10}}
    set_path(values, "defence.name", "nad")
    set_path(values, "attack.name", "badnets")
    assert values == {"defence": {"name": "nad"}, "attack": {"name": "badnets", "rate": 0.2}}
