from __future__ import annotations

import csv
import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import reseal

from antibackdoor import claiming, serialising, storage
from antibackdoor.errors import ConfigError, RunExistsError, StorageError
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.types import History, Isolation, Metrics, PoisonedSet, RunRecord

CONFIG = {
    "data": {"source": "embedded"},
    "defence": {"name": "abl-modified", "gamma": 0.5},
    "model": "wrn-10-1",
    "seed": 3,
    "train": {"augment": ["crop"]},
}
FILES = [
    "checksums.sha256",
    "config.json",
    "gallery.npz",
    "history.npz",
    "model.safetensors",
    "run.json",
    "suspects.csv",
]


def full(*_args, **_rest):
    raise OSError(28, "No space left on device")


# --- writing ------------------------------------------------------------------------------------------------


def test_text_is_written_whole(tmp_path):
    path = tmp_path / "a" / "b.txt"
    serialising.write_text(path, "één\n")
    assert path.read_text(encoding="utf-8") == "één\n"
    serialising.write_text(path, "two")
    assert path.read_text() == "two"
    assert [file.name for file in path.parent.iterdir()] == ["b.txt"]


def test_json_is_strict_and_readable(tmp_path):
    serialising.write_json(tmp_path / "x.json", {"ö": [1, None]})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"ö": [1, None]}
    assert "ö" in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("what", ["replace", "write"])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, what, there):
    path = tmp_path / "x.txt"
    if there:
        path.write_text("old")
    if what == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:  # The file is on the disk in part when it is full.
        monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*x\.txt: No space left on device"):
        serialising.write_text(path, "new text")
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == (["x.txt"] if there else [])
    assert not there or path.read_text() == "old"


def test_a_writer_that_fails_otherwise_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        serialising.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        serialising.write_text(tmp_path / "file" / "x.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        serialising.write_text(tmp_path / "folder", "text")
    assert (tmp_path / "folder").is_dir()


# --- claiming a folder --------------------------------------------------------------------------------------


def claim(out, config=CONFIG, *, resume=False, overwrite=False):
    claiming.claim(out, config, resume=resume, overwrite=overwrite)


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_a_new_folder_is_made(tmp_path, resume, overwrite):
    out = tmp_path / "a" / "run"
    claim(out, resume=resume, overwrite=overwrite)
    assert json.loads((out / "config.json").read_text()) == CONFIG


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()
    claim(tmp_path)
    claim(tmp_path, overwrite=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "plots").is_dir()


@pytest.mark.parametrize("name", [*FILES, "report.html", "checkpoints"])
def test_a_folder_with_a_run_is_refused(tmp_path, name):
    if name == "checkpoints":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("{}")
    with pytest.raises(RunExistsError, match=rf"holds another run \({name}\).*--resume.*--overwrite"):
        claim(tmp_path)
    with pytest.raises(RunExistsError):
        claiming.refuse_other_run(tmp_path, resume=False, overwrite=False)
    assert claiming.refuse_other_run(tmp_path, resume=True, overwrite=False) == [name]


def test_overwriting_removes_the_run(tmp_path):
    claim(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "train.safetensors").write_bytes(b"old")
    (tmp_path / "run.json").write_text("{}")
    claim(tmp_path, CONFIG | {"seed": 4}, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG | {"seed": 4}


def test_overwriting_needs_a_record_or_settings_of_ours(tmp_path, parts):
    storage.save_run(tmp_path, **parts)  # without settings
    claim(tmp_path, overwrite=True)
    (tmp_path / "run.json").write_text("{")  # a damaged record beside settings
    claim(tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"model_type": "bert", "seed": 1}', '{"config": {"seed": 1}}'])
@pytest.mark.parametrize("name", [*FILES, "report.html", "checkpoints/last.safetensors"])
def test_overwriting_leaves_a_folder_of_others_alone(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    for check in (claiming.refuse_other_run, lambda out, **given: claiming.claim(out, CONFIG, **given)):
        with pytest.raises(RunExistsError, match=r"no run that antibackdoor wrote.*another --out"):
            check(tmp_path, resume=False, overwrite=True)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]
    assert path.read_text() == text


def test_overwriting_touches_only_the_files_of_a_run(tmp_path):
    claim(tmp_path)
    (tmp_path / "checkpoints" / "deeper").mkdir(parents=True)
    (tmp_path / "report.html").mkdir()
    theirs = {"checkpoints/notes.txt", "checkpoints/deeper/a.safetensors", "report.html/mine.txt"}
    for name in {*theirs, "checkpoints/train.safetensors", "checkpoints/train.partial"}:
        (tmp_path / name).write_text("mine")
    claim(tmp_path, overwrite=True)
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == theirs | {"config.json"}


def test_resuming_needs_the_same_settings(tmp_path):
    claim(tmp_path)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "train.safetensors").write_bytes(b"kept")
    claim(tmp_path, resume=True)
    assert (checkpoints / "train.safetensors").read_bytes() == b"kept"
    with pytest.raises(StorageError, match=r"other settings \(seed differ.*--overwrite"):
        claim(tmp_path, CONFIG | {"seed": 4}, resume=True)
    with pytest.raises(StorageError, match=r"other settings \(more differ"):
        claim(tmp_path, CONFIG | {"more": 1}, resume=True)
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_resuming_damaged_settings(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(StorageError, match=r"config\.json is damaged"):
        claim(tmp_path, resume=True)


def test_resuming_without_settings(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(StorageError, match=r"config\.json is missing"):
        claim(tmp_path, resume=True)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        claim(tmp_path / "run")
    assert (tmp_path / "run").read_text() == ""


# --- a run, there and back ----------------------------------------------------------------------------------


@pytest.fixture
def parts(blobs):
    data = dataclasses.replace(
        blobs(60, 4, channels=3, height=16, width=16),
        ids=tuple(f"c,{i}/ü {i:03d}.png" for i in range(60)),
        classes=("a,b", 'c"d', "e", "ü"),
    )
    build, spec = builder_from("wrn-10-1", data)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(60, generator=generator)
    scores[7] = -0.0
    losses = torch.rand((3, 60), generator=generator).numpy()
    losses[2, :5] = np.nan
    record = RunRecord(
        config=CONFIG,
        seeds={"seed": 3},
        versions={"antibackdoor": "0.1.0"},
        device={"type": "cpu"},
        seconds={"train": 1.5},
        metrics=Metrics(ca=0.5, n_test=60),
        verdict="undecided",
        evidence=("One.", "Two."),
        model=spec.to_json(),
        data={"name": "blobs", "classes": list(data.classes), "skipped": []},
    )
    nothing = torch.zeros(60, dtype=torch.bool)
    return {
        "record": record,
        "model": build(Seeds(0).generator("init")),
        "data": data,
        "isolation": Isolation(scores, scores > 1, "undecided", ("One.",)),
        "histories": (
            History("isolate", losses[:2], np.array([0.1, 0.2]), np.array([1.0, 1.5])),
            History("train", losses[2:], np.array([0.3]), np.array([2.0])),
        ),
        "truth": PoisonedSet(data, scores > 2, nothing, data.labels, 0),
    }


@pytest.fixture
def run(tmp_path, parts):
    claim(tmp_path / "run")
    storage.save_run(tmp_path / "run", **parts)
    return tmp_path / "run"


def test_the_files_of_a_run(run):
    assert sorted(file.name for file in run.iterdir()) == FILES


def test_a_run_goes_round(run, parts):
    stored = storage.load_run(run)
    data, isolation = parts["data"], parts["isolation"]
    assert stored.record == parts["record"]
    assert storage.read_record(run) == parts["record"]
    assert (stored.ids, stored.classes) == (data.ids, data.classes)
    assert stored.phases == ("isolate", "isolate", "train")
    assert np.array_equal(stored.labels, data.labels.numpy())
    assert np.array_equal(stored.scores, isolation.scores.numpy())
    assert not np.signbit(stored.scores[stored.scores == 0]).any()
    assert np.array_equal(stored.flagged, isolation.flagged.numpy())
    expected = np.concatenate([history.losses for history in parts["histories"]])
    assert stored.losses.dtype == np.float32
    assert np.array_equal(stored.losses, expected, equal_nan=True)
    assert np.array_equal(stored.poison, parts["truth"].poison.numpy())
    assert np.array_equal(stored.cover, parts["truth"].cover.numpy())
    order = isolation.scores.argsort(descending=True)[: storage.GALLERY]
    assert np.array_equal(stored.gallery_index, order.numpy())
    assert np.array_equal(stored.gallery, data.images[order].permute(0, 2, 3, 1).numpy())


def test_the_gallery_has_the_flagged_first_and_then_the_classes_in_doubt(tmp_path, parts):
    data = parts["data"]
    scores = torch.arange(len(data), dtype=torch.float32)
    flagged = torch.zeros(len(data), dtype=torch.bool)
    flagged[:2] = True
    doubtful = int(data.labels[0])
    isolation = Isolation(scores, flagged, "undecided", (), (doubtful,))
    storage.save_run(tmp_path, **(parts | {"isolation": isolation}))
    shown = storage.load_run(tmp_path).gallery_index.tolist()
    of_class = [row for row in reversed(range(2, len(data))) if int(data.labels[row]) == doubtful]
    assert shown[: 2 + len(of_class)] == [1, 0, *of_class][: storage.GALLERY]
    rest = [row for row in reversed(range(2, len(data))) if int(data.labels[row]) != doubtful]
    assert shown[2 + len(of_class) :] == rest[: max(0, storage.GALLERY - 2 - len(of_class))]


def test_what_the_network_sees_and_further_arrays_go_round(tmp_path, parts):
    seen = parts["data"].labels.flip(0)
    storage.save_run(tmp_path, **(parts | {"seen": seen}))
    assert np.array_equal(storage.load_run(tmp_path).seen, seen.numpy())
    assert storage.load_arrays(tmp_path, "more.npz") is None
    storage.add_arrays(tmp_path, "more.npz", {"x": np.arange(3)})
    assert storage.load_arrays(tmp_path, "more.npz")["x"].tolist() == [0, 1, 2]
    (tmp_path / "more.npz").unlink()
    with pytest.raises(StorageError, match=r"more\.npz"):
        storage.load_arrays(tmp_path, "more.npz")


def test_a_run_without_truth_or_network(tmp_path, parts):
    storage.save_run(tmp_path, **(parts | {"truth": None, "model": None}))
    stored = storage.load_run(tmp_path)
    assert stored.poison is None
    assert stored.cover is None
    with pytest.raises(StorageError, match="holds no network"):
        storage.load_model(tmp_path, stored.record)


def test_the_network_goes_round(run, parts):
    model = storage.load_model(run, storage.read_record(run))
    assert not model.training
    before, after = parts["model"].state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    images = parts["data"].images[:3].float() / 255
    with torch.no_grad():
        assert torch.equal(model(images), parts["model"].eval()(images))


def test_the_suspects_are_all_images_most_suspect_first(run, parts):
    with (run / "suspects.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    data, isolation = parts["data"], parts["isolation"]
    assert list(rows[0]) == ["rank", "id", "label", "score", "flagged"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 61))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    for row in rows:
        i = data.ids.index(row["id"])
        assert row["label"] == data.classes[data.labels[i]]
        assert int(row["flagged"]) == int(isolation.flagged[i])
        assert float(row["score"]) == pytest.approx(float(isolation.scores[i]), rel=1e-4)


def test_the_record_is_written_last(tmp_path, parts, monkeypatch):
    written = []
    replace = os.replace

    def noting(source, target):
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", noting)
    storage.save_run(tmp_path, **parts)
    assert written[-1] == "run.json"
    assert len(written) == 6


@pytest.mark.parametrize("nth", range(6))
def test_a_disk_that_fills_while_a_run_is_saved(tmp_path, parts, monkeypatch, nth):
    calls = []
    replace = os.replace

    def sometimes(source, target):
        calls.append(target)
        if len(calls) == nth + 1:
            full()
        replace(source, target)

    monkeypatch.setattr(os, "replace", sometimes)
    with pytest.raises(StorageError, match="No space left"):
        storage.save_run(tmp_path, **parts)
    assert len(list(tmp_path.iterdir())) == nth
    assert not (tmp_path / "run.json").exists()
    with pytest.raises(StorageError, match="holds no finished run.*--resume"):
        storage.load_run(tmp_path)


def test_no_run_folder(tmp_path):
    with pytest.raises(StorageError, match="no run folder at"):
        storage.load_run(tmp_path / "missing")


# --- damage -------------------------------------------------------------------------------------------------


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(bytes(content))


def clear(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [cut, clear, remove])
@pytest.mark.parametrize("name", ["run.json", "history.npz", "gallery.npz"])
def test_a_damaged_run_is_named(run, name, damage):
    damage(run / name)
    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        storage.load_run(run)


@pytest.mark.parametrize("name", ["history.npz", "gallery.npz"])
def test_a_changed_byte_is_found(run, name):
    flip(run / name)
    with pytest.raises(StorageError, match="damaged"):
        storage.load_run(run)


@pytest.mark.parametrize("damage", [cut, clear])
def test_damaged_weights_are_named(run, damage):
    damage(run / "model.safetensors")
    with pytest.raises(StorageError, match=r"model\.safetensors is damaged"):
        storage.load_model(run, storage.read_record(run))


@pytest.mark.parametrize("name", ["history.npz", "gallery.npz"])
def test_pickled_objects_are_refused(run, name):
    with np.load(run / name) as file:
        arrays = dict(file)
    arrays[next(iter(arrays))] = np.array([{"a": 1}], dtype=object)
    np.savez(run / name, **arrays)
    reseal(run)
    with pytest.raises(StorageError, match="is damaged: Object arrays cannot be loaded"):
        storage.load_run(run)


def change(run, **values):
    record = json.loads((run / "run.json").read_text())
    record.update(values)
    (run / "run.json").write_text(json.dumps(record))
    reseal(run)


@pytest.mark.parametrize(
    "values",
    [
        {"metrics": {"unknown": 1}},
        {"metrics": 3},
        {"evidence": 3},
        {"more": 1},
        {"data": {}},
        {"data": {"classes": 3}},
        {"data": {"classes": ["a"]}},
        {"data": None},
    ],
)
def test_a_record_of_another_kind(run, values):
    change(run, **values)
    with pytest.raises(StorageError):
        storage.load_run(run)


@pytest.mark.parametrize("key", ["format", "config", "metrics", "evidence", "verdict", "seeds"])
def test_a_record_with_a_part_missing(run, key):
    record = json.loads((run / "run.json").read_text())
    del record[key]
    (run / "run.json").write_text(json.dumps(record))
    reseal(run)
    with pytest.raises(StorageError, match="damaged or of another version"):
        storage.load_run(run)


def test_a_record_of_another_format(run):
    change(run, format=3)
    with pytest.raises(StorageError, match="of another version"):
        storage.load_run(run)


def test_weights_of_another_network(run):
    spec = json.loads((run / "run.json").read_text())["model"]
    change(run, model=spec | {"num_classes": 7})
    with pytest.raises(StorageError, match="belongs to another network"):
        storage.load_model(run, storage.read_record(run))
    change(run, model={"name": "wrn-10-1"})
    with pytest.raises(StorageError, match="damaged or of another version"):
        storage.load_model(run, storage.read_record(run))


def test_the_users_own_network_cannot_be_built(run):
    spec = json.loads((run / "run.json").read_text())["model"]
    change(run, model=spec | {"name": "custom"})
    with pytest.raises(ConfigError, match="network of your own"):
        storage.load_model(run, storage.read_record(run))
