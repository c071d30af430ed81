"""The command, end to end on tiny data: what it writes, what it refuses, and how it says so."""

from __future__ import annotations

import csv
import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from end_to_end import CLASSES, FAST, Finished, assert_refused, invoke, write_folder, write_npz, write_vast_png
from PIL import Image
from safetensors.numpy import load_file

import antibackdoor.demo
from antibackdoor.config import Choice, DataConfig, PoisonConfig, RunConfig, TrainConfig

METRICS = {"ca", "ca_target", "asr", "ra", "holdout_accuracy", "precision", "recall", "fpr", "auroc", "auprc"}
VERDICTS = {"no sign of poison", "poisoned", "undecided"}


def run_json(run: Path) -> dict:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def rows_of(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 clean images in 3 class folders; not to be changed."""
    return write_folder(tmp_path_factory.mktemp("data") / "pets")


@pytest.fixture(scope="module")
def test_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "test", 5, seed=1)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "pets.npz")


@pytest.fixture(scope="module", autouse=True)
def _module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # The fixtures of this module run before the cache of a single test is set.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Finished]:
    """One finished run on the folder, without a test set."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = invoke("train", folder, "--out", out, *FAST)
    assert done.code == 0, done
    return out, done


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A poisoned set as files, made of a folder with train/ and test/."""
    root = tmp_path_factory.mktemp("planted")
    write_folder(root / "clean" / "train")
    write_folder(root / "clean" / "test", 5, seed=1)
    done = invoke(
        *("poison", root / "clean", "--out", root / "bad", "--attack", "badnets", "--rate", 0.2),
        *("--target", "dog", "--device", "cpu", "--set", "attack.size=3"),
    )
    assert done.code == 0, done
    return root / "bad"


# --- what is written ---------------------------------------------------------------------------------------------


def test_train_writes_exactly_the_documented_files(trained: tuple[Path, Finished]) -> None:
    run, _ = trained
    documented = {"run.json", "suspects.csv", "model.safetensors", "history.npz", "report.html", "checksums.sha256"}
    assert documented <= files_below(run)
    assert not [name for name in files_below(run) if "partial" in name]
    # Nothing that a user may load later is a pickle.
    assert {Path(name).suffix for name in files_below(run)} <= {
        ".json",
        ".csv",
        ".safetensors",
        ".npz",
        ".html",
        ".sha256",
    }


def test_run_json_has_the_documented_keys(trained: tuple[Path, Finished]) -> None:
    record = run_json(trained[0])
    assert {"config", "seeds", "versions", "device", "seconds", "metrics", "verdict", "evidence"} <= set(record)
    assert set(record["metrics"]) >= METRICS
    assert record["verdict"] in VERDICTS
    assert all(isinstance(sentence, str) for sentence in record["evidence"])
    assert all(isinstance(seconds, float) for seconds in record["seconds"].values())
    assert {"isolate", "fine-tune", "unlearn"} <= set(record["seconds"])
    # The resolved configuration: what was given, and every default filled in.
    assert record["config"]["train"]["epochs"] == 1
    assert record["config"]["defence"]["isolation_epochs"] == 1
    assert record["config"]["defence"]["gamma"] > 0
    assert {"torch", "numpy", "python", "antibackdoor"} <= set(record["versions"])


def test_the_resolved_configuration_can_be_used_as_a_config_file(
    trained: tuple[Path, Finished], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(run_json(trained[0])["config"]))
    done = invoke("train", folder, "--out", tmp_path / "run", "--config", tmp_path / "again.yaml")
    assert done.code == 0, done
    assert run_json(tmp_path / "run")["config"] == run_json(trained[0])["config"]
    for name in ("suspects.csv", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained[0] / name).read_bytes()


def test_suspects_csv_names_every_image_most_suspect_first(trained: tuple[Path, Finished], folder: Path) -> None:
    columns, rows = rows_of(trained[0] / "suspects.csv")
    assert columns == ["rank", "id", "label", "score", "flagged"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 61))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    # The images held out for accuracy are there too, and every id leads to its file.
    assert {row["id"] for row in rows} == files_below(folder)
    assert all(row["id"].split("/")[0] == row["label"] for row in rows)
    assert {row["flagged"] for row in rows} <= {"0", "1"}
    assert sum(int(row["flagged"]) for row in rows) == run_json(trained[0])["metrics"]["n_flagged"]


def test_history_holds_the_losses_of_every_epoch_without_a_pickle(trained: tuple[Path, Finished]) -> None:
    with np.load(trained[0] / "history.npz", allow_pickle=False) as arrays:
        held = dict(arrays)
    assert held["losses"].dtype == np.float32
    assert held["losses"].shape == (3, 60)  # one epoch each of isolate, fine-tune and unlearn
    assert np.isfinite(held["losses"][0]).all()
    assert (held["losses"][0] >= 0).all()


def test_weights_are_safetensors(trained: tuple[Path, Finished]) -> None:
    weights = load_file(trained[0] / "model.safetensors")
    assert weights
    assert all(np.isfinite(value).all() for value in weights.values())


def test_train_without_a_test_set_holds_a_tenth_out_and_warns_of_it(trained: tuple[Path, Finished]) -> None:
    run, done = trained
    metrics = run_json(run)["metrics"]
    assert metrics["n_holdout"] == 6
    assert 0 <= metrics["holdout_accuracy"] <= 1
    assert metrics["ca"] is None
    assert metrics["asr"] is None
    assert any("held out" in line and "may be poisoned too" in line for line in run_json(run)["evidence"])
    assert "may be poisoned too" in done.out


def test_the_report_opens_offline(trained: tuple[Path, Finished]) -> None:
    page = (trained[0] / "report.html").read_text(encoding="utf-8")
    for address in ('src="http', 'href="http', "url(http", "@import"):
        assert address not in page


def test_train_with_a_clean_test_set(folder: Path, test_folder: Path, tmp_path: Path) -> None:
    done = invoke("train", folder, "--test", test_folder, "--out", tmp_path / "run", *FAST)
    assert done.code == 0, done
    metrics = run_json(tmp_path / "run")["metrics"]
    assert metrics["n_test"] == 15
    assert 0 <= metrics["ca"] <= 1
    assert metrics["holdout_accuracy"] is None


def test_the_same_seed_gives_the_same_files_bit_for_bit(
    trained: tuple[Path, Finished], folder: Path, tmp_path: Path
) -> None:
    assert invoke("train", folder, "--out", tmp_path / "run", *FAST).code == 0
    for name in ("suspects.csv", "model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (trained[0] / name).read_bytes()


def test_scan_writes_no_network_and_can_fail_a_pipeline(npz: Path, tmp_path: Path) -> None:
    done = invoke("scan", npz, "--out", tmp_path / "run", "--fail-on-suspects", *FAST)
    assert run_json(tmp_path / "run")["metrics"]["n_flagged"] > 0
    assert done.code == 3, done
    assert not (tmp_path / "run" / "model.safetensors").exists()
    _, rows = rows_of(tmp_path / "run" / "suspects.csv")
    assert len(rows) == 60
    assert {row["label"] for row in rows} == {"0", "1", "2"}


@pytest.mark.parametrize("command", ["train", "scan"])
def test_without_a_name_the_witnesses_judge(command: str, npz: Path, tmp_path: Path) -> None:
    done = invoke(
        *(command, npz, "--out", tmp_path / "run", "--alpha", 0.05, "--device", "cpu", "--model", "wrn-10-1"),
        *("--epochs", 2, "--set", "train.batch_size=16", "--set", "defence.witness=none"),
    )
    assert done.code == 0, done
    record = run_json(tmp_path / "run")
    defence = record["config"]["defence"]
    assert defence == {"name": "witnesses", "alpha": 0.05, "witness": "none"}
    assert "detector 1" in record["seconds"]
    assert record["verdict"] in VERDICTS
    _, rows = rows_of(tmp_path / "run" / "suspects.csv")
    assert len({row["id"] for row in rows}) == 60


def test_scan_without_suspects_does_not_fail(npz: Path, tmp_path: Path) -> None:
    done = invoke(
        *("scan", npz, "--out", tmp_path / "run", "--fail-on-suspects", "--defence", "none"),
        *("--device", "cpu", "--model", "wrn-10-1", "--epochs", "1"),
    )
    assert done.code == 0, done


def test_poison_writes_what_train_reads(planted: Path, tmp_path: Path) -> None:
    columns, truth = rows_of(planted / "train" / "manifest.csv")
    assert columns == ["id", "label", "original_label", "poisoned", "cover", "source"]
    assert len(truth) == 60
    clean = planted.parent / "clean"
    assert {row["source"] for row in truth} == {f"train/{name}" for name in files_below(clean / "train")}
    assert all(row["id"] == row["source"] for row in truth if row["label"] == row["original_label"])
    bad = [row for row in truth if row["poisoned"] == "1"]
    assert len(bad) == 12
    assert all(row["label"] == "dog" and row["original_label"] != "dog" for row in bad)
    assert all(row["label"] == row["original_label"] for row in truth if row["poisoned"] == "0")
    assert all(row["id"].split("/")[1] == row["label"] for row in truth)
    assert all((planted / row["id"]).is_file() for row in truth)
    assert {path.name for path in (planted / "triggered_test").iterdir()} == {"cat", "owl"}
    assert len(files_below(planted / "triggered_test")) == 10

    done = invoke("train", planted, "--out", tmp_path / "run", *FAST)
    assert done.code == 0, done
    assert "left out" not in done.out + done.err
    _, suspects = rows_of(tmp_path / "run" / "suspects.csv")
    assert {row["id"] for row in suspects} == {row["id"] for row in truth}

    clean = planted.parent / "clean" / "test"
    done = invoke(
        *("evaluate", tmp_path / "run", "--clean", clean, "--triggered", planted / "triggered_test"),
        *("--target", "dog", "--device", "cpu"),
    )
    assert done.code == 0, done
    assert "15" in done.out
    assert "10" in done.out
    by_index = invoke("evaluate", tmp_path / "run", "--triggered", planted / "triggered_test", "--target", "1")
    assert by_index.code == 0, by_index


def test_poison_changes_only_what_its_manifest_says(planted: Path) -> None:
    original = {}
    for name in files_below(planted.parent / "clean" / "train"):
        original[np.asarray(Image.open(planted.parent / "clean" / "train" / name)).tobytes()] = name
    _, truth = rows_of(planted / "train" / "manifest.csv")
    for row in truth:
        same = np.asarray(Image.open(planted / row["id"])).tobytes() in original
        assert same == (row["poisoned"] == "0"), row


def test_poison_gives_the_same_set_twice_and_another_with_another_seed(npz: Path, tmp_path: Path) -> None:
    chosen = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = invoke(
            *("poison", npz, "--out", tmp_path / name, "--attack", "badnets", "--rate", 0.1),
            *("--target", 0, "--seed", seed, "--device", "cpu"),
        )
        assert done.code == 0, done
        _, rows = rows_of(tmp_path / name / "train" / "manifest.csv")
        chosen.append([row["id"] for row in rows if row["poisoned"] == "1"])
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    assert not (tmp_path / "a" / "triggered_test").exists()


def test_an_experiment_records_what_was_planted_and_what_was_found(npz: Path, tmp_path: Path) -> None:
    done = invoke(
        *("train", npz, "--test", npz, "--out", tmp_path / "run", *FAST),
        *("--set", "attack.name=badnets", "--set", "attack.rate=0.2", "--set", "attack.target=2"),
    )
    assert done.code == 0, done
    metrics = run_json(tmp_path / "run")["metrics"]
    assert metrics["n_poison"] == 12
    assert metrics["n_triggered"] == 40
    for name in ("ca", "asr", "ra", "recall", "auroc", "auprc", "precision", "fpr"):
        assert 0 <= metrics[name] <= 1, name


def test_predict_takes_files_and_folders_and_leaves_unreadable_ones_out(
    trained: tuple[Path, Finished], test_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    Image.open(test_folder / "cat" / "000.png").convert("L").resize((40, 25)).save(
        tmp_path / "deep" / "deeper" / "x.JPG", format="JPEG"
    )
    (tmp_path / "deep" / "broken.png").write_bytes(b"not a picture")
    (tmp_path / "deep" / "notes.txt").write_text("not an image either")
    one = test_folder / "owl" / "001.png"
    done = invoke("predict", trained[0], one, tmp_path / "deep", "--out", tmp_path / "preds.csv", "--device", "cpu")
    assert done.code == 0, done
    columns, rows = rows_of(tmp_path / "preds.csv")
    assert columns == ["path", "predicted", "probability"]
    assert [row["path"] for row in rows] == [str(one), str(tmp_path / "deep" / "deeper" / "x.JPG")]
    assert {row["predicted"] for row in rows} <= set(CLASSES)
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    assert "broken.png" in done.err
    assert "notes.txt" not in done.err


def test_predict_keeps_the_path_as_it_was_given(
    trained: tuple[Path, Finished], test_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(test_folder.parent)
    done = invoke("predict", trained[0], "test/cat", "--out", tmp_path / "preds.csv", "--device", "cpu")
    assert done.code == 0, done
    _, rows = rows_of(tmp_path / "preds.csv")
    assert [row["path"] for row in rows] == [f"test/cat/{i:03d}.png" for i in range(5)]


def test_report_is_written_again(trained: tuple[Path, Finished]) -> None:
    page = trained[0] / "report.html"
    page.unlink()
    done = invoke("report", trained[0])
    assert done.code == 0, done
    assert page.stat().st_size > 1000


@pytest.mark.parametrize("family", ["attacks", "defences", "signals", "models", "datasets"])
def test_list_shows_a_name_and_a_sentence_a_line(family: str) -> None:
    done = invoke("list", family)
    assert done.code == 0, done
    assert done.err == ""
    lines = done.out.splitlines()
    assert len(lines) >= 3
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)


def test_doctor_tells_versions_and_the_device() -> None:
    done = invoke("doctor")
    assert done.code == 0, done
    for word in ("torch", "device", "precision", "cuda", "cache", "timm"):
        assert any(line.startswith(word) for line in done.out.splitlines()), word


def test_demo_writes_two_runs_and_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(seed: int, defence: str) -> RunConfig:
        quick = {"isolation_epochs": 1, "unlearn_epochs": 1} if defence != "none" else {}
        return RunConfig(
            data=DataConfig(limit=200, limit_test=100),
            model="wrn-10-1",
            attack=PoisonConfig(name="badnets", rate=0.1),
            defence=Choice(name="none" if defence == "none" else "abl-modified", params=quick),
            train=TrainConfig(epochs=1),
            seed=seed,
            device="cpu",
        )

    monkeypatch.setattr(antibackdoor.demo, "demo_config", small)
    done = invoke("demo", "--out", tmp_path / "demo")
    assert done.code == 0, done
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    assert set(summary) == {"undefended", "defended", "seconds"}
    assert set(summary["undefended"]) == {"ca", "asr"}
    assert set(summary["defended"]) == {"ca", "asr", "precision", "recall"}
    shares = [*summary["undefended"].values(), *summary["defended"].values()]
    assert all(isinstance(share, float) and 0 <= share <= 1 for share in shares)
    assert isinstance(summary["seconds"], float)
    for name in ("undefended", "defended"):
        assert run_json(tmp_path / "demo" / name)["metrics"]["n_poison"] == 20
        assert name in done.out
    again = invoke("demo", "--out", tmp_path / "demo")
    assert again.code == 2
    assert "--overwrite" in again.err


# --- settings ------------------------------------------------------------------------------------------------------


def test_options_win_over_the_file_and_set_wins_over_both(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        "seed: 3\nmodel: wrn-16-1\ndevice: cpu\ntrain: {epochs: 7, batch_size: 32, lr: 0.02}\n"
        "defence: {name: abl-modified, gamma: 0.3, isolation_epochs: 1, unlearn_epochs: 1}\n"
    )
    done = invoke(
        *("scan", npz, "--out", tmp_path / "run", "--config", tmp_path / "run.yaml"),
        *("--model", "wrn-10-1", "--epochs", 5, "--set", "train.epochs=2", "--set", "defence.share=0.1"),
    )
    assert done.code == 0, done
    config = run_json(tmp_path / "run")["config"]
    assert config["seed"] == 3
    assert config["model"] == "wrn-10-1"
    assert config["train"]["epochs"] == 2
    assert config["train"]["batch_size"] == 32
    assert config["train"]["lr"] == 0.02
    assert config["defence"]["gamma"] == 0.3
    assert config["defence"]["share"] == 0.1


def test_another_defence_than_the_files_takes_its_own_defaults(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("device: cpu\nmodel: wrn-10-1\ndefence: {name: abl-modified, gamma: 0.3}\n")
    done = invoke(
        *("train", npz, "--out", tmp_path / "run", "--config", tmp_path / "run.yaml"),
        *("--defence", "none", "--epochs", 1),
    )
    assert done.code == 0, done
    assert run_json(tmp_path / "run")["config"]["defence"] == {"name": "none"}


def test_skip_bad_leaves_images_out_and_counts_them(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "pets")
    whole = (data / "dog" / "003.png").read_bytes()
    (data / "dog" / "003.png").write_bytes(whole[: len(whole) // 2])
    (data / "owl" / "x.jpg").write_text("no picture")
    done = invoke("train", data, "--out", tmp_path / "run", "--skip-bad", *FAST)
    assert done.code == 0, done
    record = run_json(tmp_path / "run")
    assert record["data"]["skipped"] == ["dog/003.png", "owl/x.jpg"]
    assert record["data"]["images"] == 59
    assert len(rows_of(tmp_path / "run" / "suspects.csv")[1]) == 59


# --- what is refused ----------------------------------------------------------------------------------------------


def _no_images(root: Path) -> Path:
    (root / "d" / "cat").mkdir(parents=True)
    (root / "d" / "dog").mkdir()
    (root / "d" / "cat" / "notes.txt").write_text("none here")
    return root / "d"


def _empty_folder(root: Path) -> Path:
    (root / "d").mkdir()
    return root / "d"


def _flat_folder(root: Path) -> Path:
    return write_folder(root / "d") / "cat"


def _class_of_notes(root: Path) -> Path:
    data = write_folder(root / "d")
    (data / "zebra").mkdir()
    (data / "zebra" / "notes.txt").write_text("no image")
    return data


def _one_image(root: Path) -> Path:
    data = write_folder(root / "d")
    for path in sorted((data / "dog").iterdir())[1:]:
        path.unlink()
    return data


def _truncated(root: Path) -> Path:
    data = write_folder(root / "d")
    path = data / "dog" / "007.png"
    path.write_bytes(path.read_bytes()[:-200])
    return data


def _unreadable(root: Path) -> Path:
    data = write_folder(root / "d")
    (data / "owl" / "005.png").write_bytes(b"GIF? no.")
    return data


def _zero_bytes(root: Path) -> Path:
    data = write_folder(root / "d")
    (data / "owl" / "005.png").write_bytes(b"")
    return data


def _vast(root: Path) -> Path:
    data = write_folder(root / "d", 3)
    write_vast_png(data / "cat" / "vast.png")
    return data


def _npz(**arrays: object) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        images = np.zeros((6, 12, 12), np.uint8)
        np.savez(root / "d.npz", **{"images": images, "labels": np.arange(6) % 2, **arrays})
        return root / "d.npz"

    return make


def _object_labels(root: Path) -> Path:
    labels = np.empty(6, dtype=object)
    labels[:] = [0, 1, 0, 1, "a", None]
    return _npz(labels=labels)(root)


def _without_labels(root: Path) -> Path:
    np.savez(root / "d.npz", images=np.zeros((6, 12, 12), np.uint8))
    return root / "d.npz"


def _not_an_npz(root: Path) -> Path:
    (root / "d.npz").write_bytes(b"PK\x03\x04 but nothing behind it")
    return root / "d.npz"


def _zip(root: Path) -> Path:
    (root / "d.zip").write_bytes(b"PK")
    return root / "d.zip"


def _csv(text: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "d.csv").write_text(text)
        return root / "d.csv"

    return make


DATA: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no such folder": (lambda root: root / "nope", ("nope", "no such folder")),
    "no images": (_no_images, ("/d", "no images")),
    "empty folder": (_empty_folder, ("/d", "no images")),
    "images without class folders": (_flat_folder, ("/d/cat", "one subfolder a class")),
    "a class without images": (_class_of_notes, ("zebra", "not read", ".txt 1")),
    "one class only": (lambda root: write_folder(root / "d", classes=["cat"]), ("only one class", "cat")),
    "a class with one image": (_one_image, ("dog", "one image")),
    "a truncated image": (_truncated, ("dog/007.png", "truncated", "--skip-bad")),
    "an unreadable image": (_unreadable, ("owl/005.png", "--skip-bad")),
    "an image of zero bytes": (_zero_bytes, ("owl/005.png",)),
    "30,000 x 30,000 pixels": (_vast, ("cat/vast.png", "megapixels")),
    "labels as floats": (_npz(labels=np.arange(6) % 2 + 0.5), ("d.npz", "float64", "integers")),
    "labels as text": (_npz(labels=np.array(list("ababab"))), ("d.npz", "integers")),
    "negative labels": (_npz(labels=np.arange(6) % 2 - 1), ("d.npz", "negative")),
    "labels of another length": (_npz(labels=np.arange(5) % 2), ("d.npz", "6", "5")),
    "a .npz with objects": (_object_labels, ("d.npz", "objects")),
    "a .npz without labels": (_without_labels, ("d.npz", "labels")),
    "float images": (_npz(images=np.zeros((6, 12, 12), np.float32)), ("d.npz", "uint8")),
    "images of 4 pixels": (_npz(images=np.zeros((6, 4, 4), np.uint8)), ("d.npz", "4x4")),
    "a damaged .npz": (_not_an_npz, ("d.npz",)),
    "another kind of file": (_zip, ("d.zip", ".npz")),
    "a table without the columns": (_csv("a,b\n"), ("d.csv", "column 'path'")),
    "a table of files that are not there": (_csv("path,label\na.png,x\n"), ("d.csv", "line 2", "No such file")),
    "a hub name without a name": (lambda root: "hub:", ("hub:",)),
}


def test_grey_of_twelve_bits_is_predicted_as_it_was_trained(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for k in range(8):
        values = generator.integers(0, 4096, (12, 12)).astype(np.uint16)
        values[0, 0] = 4095
        (tmp_path / "d" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(tmp_path / "d" / "ab"[k % 2] / f"{k}.png")
    done = invoke("train", tmp_path / "d", "--out", tmp_path / "run", *FAST)
    assert done.code == 0
    assert "12 bits, so 4,095 is white" in done.out
    assert run_json(tmp_path / "run")["data"]["white"] == 4095
    (tmp_path / "new").mkdir()
    Image.fromarray(values).save(tmp_path / "new" / "16.png")
    Image.fromarray(((values.astype(int) * 255 + 2047) // 4095).astype(np.uint8)).save(tmp_path / "new" / "8.png")
    assert invoke("predict", tmp_path / "run", tmp_path / "new", "--out", tmp_path / "p.csv").code == 0
    first, second = rows_of(tmp_path / "p.csv")[1]
    assert (first["predicted"], first["probability"]) == (second["predicted"], second["probability"])
    assert invoke("evaluate", tmp_path / "run", "--clean", tmp_path / "d").code == 0


def test_a_table_of_paths_keeps_its_ids(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.png"))
    rows = [f"no {i},{file},{file.parent.name}\n" for i, file in enumerate(files)]
    (tmp_path / "photos.csv").write_text("id,path,label\n" + "".join(rows))
    assert invoke("scan", tmp_path / "photos.csv", "--out", tmp_path / "run", *FAST).code == 0
    listed = {row["id"]: row["label"] for row in rows_of(tmp_path / "run" / "suspects.csv")[1]}
    assert listed == {f"no {i}": file.parent.name for i, file in enumerate(files)}
    attack = ("--attack", "badnets", "--rate", 0.1, "--target", "cat")
    assert invoke("poison", tmp_path / "photos.csv", "--out", tmp_path / "poisoned", *attack).code == 0
    assert len(list((tmp_path / "poisoned" / "train").rglob("*.png"))) == len(files)


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("command", ["train", "poison"])
def test_bad_data_is_refused(command: str, case: str, tmp_path: Path) -> None:
    make, named = DATA[case]
    data = make(tmp_path)
    before = files_below(tmp_path)
    rest = FAST if command == "train" else ("--attack", "badnets", "--rate", 0.1, "--target", 0)
    done = invoke(command, data, "--out", tmp_path / "out", *rest)
    assert_refused(done, *named)
    assert not (tmp_path / "out").exists()
    assert files_below(tmp_path) == before
    assert files_below(Path(os.environ["ANTIBACKDOOR_CACHE"])) == set()


SETTINGS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "unknown defence": (("--defence", "abl-cod"), ("'abl-cod'", "'abl-code'")),
    "a defence that was renamed": (("--defence", "abl"), ("'abl'", "'abl-modified'", "'abl-code'", "'abl-paper'")),
    "a defence that was replaced": (("--defence", "filter"), ("'filter'", "no longer", "'witnesses'")),
    "a defence in capitals": (("--defence", "ABL-CODE"), ("'ABL-CODE'", "'abl-code'")),
    "unknown model": (("--model", "wrn-10"), ("'wrn-10'", "'wrn-10-1'")),
    "unknown attack": (("--set", "attack.name=badnet"), ("'badnet'", "'badnets'")),
    "unknown key of a defence": (("--defence", "abl-modified", "--set", "defence.gama=0.4"), ("gama", "'gamma'")),
    "unknown key of the default defence": (("--set", "defence.alhpa=0.05"), ("alhpa", "'alpha'")),
    "unknown key of an attack": (("--set", "attack.name=badnets", "--set", "attack.sice=3"), ("sice", "'size'")),
    "unknown key of a section": (("--set", "train.epoch=3"), ("train.epoch", "'train.epochs'")),
    "unknown section": (("--set", "trian.epochs=3"), ("trian", "'train'")),
    "unknown signal": (("--defence", "abl-modified", "--set", "defence.signal=los"), ("'los'", "'loss'")),
    "a key below a value": (("--set", "model.name=x"), ("model.name",)),
    "a setting without a value": (("--set", "train.epochs"), ("train.epochs", "key=value")),
    "a setting that is no YAML": (("--set", "train.epochs=[1"), ("train.epochs",)),
    "a section as a value": (("--set", "train=5"), ("train",)),
    "text for a number": (("--set", "train.epochs=many"), ("train.epochs", "many")),
    "zero epochs": (("--epochs", 0), ("train.epochs", "0")),
    "words for epochs": (("--epochs", "two"), ("--epochs",)),
    "lr that is not a number": (("--set", "train.lr=.nan"), ("train.lr",)),
    "gamma below zero": (("--defence", "abl-modified", "--set", "defence.gamma=-1"), ("defence.gamma", "-1")),
    "share above one": (("--defence", "abl-modified", "--set", "defence.share=2"), ("defence.share", "2")),
    "an alpha of zero": (("--alpha", 0), ("defence.alpha", "0")),
    "an alpha in words": (("--alpha", "high"), ("--alpha",)),
    "a defence without an alpha": (("--defence", "abl-modified", "--alpha", 0.1), ("'alpha'",)),
    "holdout of all": (("--set", "data.holdout=1"), ("data.holdout", "1")),
    "a rate above 1": (("--set", "attack.name=badnets", "--set", "attack.rate=1.5"), ("1.5", "0..1")),
    "a rate below 0": (("--set", "attack.name=badnets", "--set", "attack.rate=-0.1"), ("-0.1", "0..1")),
    "a rate that is not a number": (("--set", "attack.name=badnets", "--set", "attack.rate=.nan"), ("nan", "0..1")),
    "more poison than candidates": (("--set", "attack.name=sig", "--set", "attack.rate=0.9"), ("0.9", "54", "20")),
    "an attack without a name": (("--set", "attack.rate=0.1"), ("attack.name",)),
    "a target that is no class": (
        ("--set", "attack.name=badnets", "--set", "attack.target=bird"),
        ("'bird'", "attack.target"),
    ),
    "a CUDA device that is not there": (("--device", "cuda:99"), ("cuda:99", "not there")),
    "a device that is none": (("--device", "gpu"), ("'gpu'", "cuda")),
    "too small an image size": (("--image-size", 4), ("image_size", "4")),
    "a configuration file that is not there": (("--config", "/nope/run.yaml"), ("/nope/run.yaml",)),
    "test images that are not there": (("--test", "/nope/test"), ("/nope/test",)),
    "an unknown option": (("--epoks", 3), ("--epoks",)),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_bad_settings_are_refused(case: str, npz: Path, tmp_path: Path) -> None:
    given, named = SETTINGS[case]
    done = invoke("train", npz, "--out", tmp_path / "out", *given)
    assert_refused(done, *named)
    assert files_below(tmp_path) == set()
    assert not (tmp_path / "out").exists()


POISON: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "unknown attack": (("--attack", "badnet", "--rate", 0.1, "--target", 0), ("'badnet'", "'badnets'")),
    "a rate above 1": (("--attack", "badnets", "--rate", 1.5, "--target", 0), ("1.5", "0..1")),
    "a rate below 0": (("--attack", "badnets", "--rate", -1, "--target", 0), ("-1", "0..1")),
    "a rate that is not a number": (("--attack", "badnets", "--rate", "nan", "--target", 0), ("nan", "0..1")),
    "a rate in words": (("--attack", "badnets", "--rate", "half", "--target", 0), ("--rate",)),
    "too many": (("--attack", "badnets", "--rate", 0.9, "--target", 0), ("0.9", "40")),
    "a rate of no image": (("--attack", "badnets", "--rate", 0.001, "--target", 0), ("0.001", "none of 60 images")),
    "no such class": (("--attack", "badnets", "--rate", 0.1, "--target", "bird"), ("'bird'",)),
    "no such index": (("--attack", "badnets", "--rate", 0.1, "--target", 3), ("'3'", "0..2")),
    "a patch larger than the picture": (
        ("--attack", "badnets", "--rate", 0.1, "--target", 0, "--set", "attack.size=40"),
        ("40", "12x12"),
    ),
    "unknown key": (
        ("--attack", "badnets", "--rate", 0.1, "--target", 0, "--set", "attack.sice=4"),
        ("sice", "'size'"),
    ),
    "no rate": (("--attack", "badnets", "--target", 0), ("--rate",)),
}


@pytest.mark.parametrize("case", POISON)
def test_bad_poisoning_is_refused(case: str, npz: Path, tmp_path: Path) -> None:
    given, named = POISON[case]
    done = invoke("poison", npz, "--out", tmp_path / "new" / "out", *given)
    assert_refused(done, *named)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ((), ("--help",)),
        (("trian",), ("trian",)),
        (("train",), ("DATA",)),
        (("train", "embedded"), ("--out",)),
        (("list",), ("attacks",)),
        (("list", "attack"), ("'attack'", "'attacks'")),
        (("predict", "/nope/run", "/nope/x.png", "--out", "/nope/p.csv"), ("/nope/run",)),
        (("evaluate", "/nope/run", "--clean", "/nope"), ("/nope/run",)),
        (("evaluate", "/nope/run"), ("--clean",)),
        (("evaluate", "/nope/run", "--triggered", "/nope"), ("--target",)),
        (("report", "/nope/run"), ("/nope/run",)),
        (("train", "embedded", "--out", ""), ("empty",)),
        (("train", "", "--out", "/nope/run"), ("empty",)),
        (("list", "Attacks"), ("'attacks'",)),
    ],
)
def test_a_wrong_command_line_is_refused(args: tuple[str, ...], named: tuple[str, ...]) -> None:
    assert_refused(invoke(*args), *named)
    assert not Path("/nope").exists()


def test_out_that_holds_a_run_is_refused_and_left_alone(trained: tuple[Path, Finished], folder: Path) -> None:
    run, _ = trained
    before = {name: (run / name).read_bytes() for name in files_below(run)}
    done = invoke("train", folder, "--out", run, *FAST)
    assert_refused(done, str(run), "--resume", "--overwrite")
    assert {name: (run / name).read_bytes() for name in files_below(run)} == before


def test_overwrite_with_a_bad_setting_keeps_the_run_that_was_there(
    trained: tuple[Path, Finished], folder: Path
) -> None:
    run, _ = trained
    before = files_below(run)
    assert_refused(invoke("train", folder, "--out", run, "--overwrite", "--model", "wrn"), "wrn")
    assert_refused(invoke("train", "/nope/data", "--out", run, "--overwrite", *FAST), "/nope/data")
    assert files_below(run) == before


def test_overwrite_replaces_the_run_and_nothing_else(npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke("train", npz, "--out", run, *FAST).code == 0
    (run / "notes.txt").write_text("mine")
    done = invoke("scan", npz, "--out", run, "--overwrite", *FAST)
    assert done.code == 0, done
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "model.safetensors").exists()
    assert not (run / "checkpoints" / "fine-tune.safetensors").exists()


def test_overwrite_leaves_a_folder_of_others_alone(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "checkpoints/best.safetensors"):
        (out / name).write_text("{}")
    assert_refused(invoke("train", npz, "--out", out, "--overwrite", *FAST), str(out), "config.json", "another --out")
    assert files_below(out) == {"config.json", "checkpoints/best.safetensors"}


def test_resume_with_other_settings_is_refused(trained: tuple[Path, Finished], folder: Path) -> None:
    done = invoke("train", folder, "--out", trained[0], "--resume", *FAST, "--seed", 5)
    assert_refused(done, "seed")


def test_resume_and_overwrite_exclude_each_other(trained: tuple[Path, Finished], folder: Path) -> None:
    before = files_below(trained[0])
    done = invoke("train", folder, "--out", trained[0], "--resume", "--overwrite", *FAST)
    assert_refused(done, "--resume", "--overwrite")
    assert files_below(trained[0]) == before


@pytest.mark.parametrize("command", ["train", "poison"])
def test_out_that_is_a_file_is_refused_and_left_alone(command: str, npz: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    rest = FAST if command == "train" else ("--attack", "badnets", "--rate", 0.1, "--target", 0)
    assert_refused(invoke(command, npz, "--out", tmp_path / "out", *rest), "out")
    assert (tmp_path / "out").read_text() == "mine"
    assert files_below(tmp_path) == {"out"}


def test_poison_into_a_folder_that_holds_something_is_refused(npz: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    args = ("poison", npz, "--out", tmp_path / "out", "--attack", "badnets", "--rate", 0.1, "--target", 0)
    assert_refused(invoke(*args), "out", "--overwrite")
    assert files_below(tmp_path) == {"out/mine.txt"}
    assert invoke(*args, "--overwrite").code == 0
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("manifest", [None, "id,label\n", b"\xff\xfe"])
def test_poison_overwrites_no_images_but_a_set_of_its_own(
    manifest: str | bytes | None, npz: Path, tmp_path: Path
) -> None:
    write_folder(tmp_path / "out" / "train", 2)
    if manifest is not None:
        content = manifest.encode() if isinstance(manifest, str) else manifest
        (tmp_path / "out" / "train" / "manifest.csv").write_bytes(content)
    before = files_below(tmp_path)
    args = ("poison", npz, "--out", tmp_path / "out", "--attack", "badnets", "--rate", 0.1, "--target", 0)
    assert_refused(invoke(*args, "--overwrite"), str(tmp_path / "out"), "another --out")
    assert files_below(tmp_path) == before


def test_poison_overwrites_a_set_of_its_own(npz: Path, tmp_path: Path) -> None:
    args = ("poison", npz, "--out", tmp_path / "out", "--attack", "badnets", "--target", 0, "--overwrite")
    for rate, count in ((0.1, 6), (0.2, 12)):
        assert invoke(*args, "--rate", rate).code == 0
        _, rows = rows_of(tmp_path / "out" / "train" / "manifest.csv")
        assert sum(row["poisoned"] == "1" for row in rows) == count


def test_poison_never_replaces_the_images_it_reads(tmp_path: Path) -> None:
    write_folder(tmp_path / "d" / "train")
    before = files_below(tmp_path)
    done = invoke(
        *("poison", tmp_path / "d", "--out", tmp_path / "d", "--overwrite"),
        *("--attack", "badnets", "--rate", 0.1, "--target", 0),
    )
    assert_refused(done, str(tmp_path / "d"))
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ""])
def test_class_names_that_are_no_folder_names_do_not_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    data = _npz(classes=np.array(["cat", name]))(tmp_path)
    done = invoke(
        *("poison", data, "--out", tmp_path / "new" / "out", "--attack", "badnets", "--rate", 0.1, "--target", 0)
    )
    assert_refused(done, repr(name))
    assert files_below(tmp_path) == {"d.npz"}


def test_predict_and_evaluate_need_a_run_with_a_network(npz: Path, test_folder: Path, tmp_path: Path) -> None:
    assert invoke("scan", npz, "--out", tmp_path / "run", *FAST).code == 0
    done = invoke("predict", tmp_path / "run", test_folder, "--out", tmp_path / "preds.csv")
    assert_refused(done, "scan", "train")
    assert not (tmp_path / "preds.csv").exists()
    assert_refused(invoke("evaluate", tmp_path / "run", "--clean", test_folder), "scan", "train")


@pytest.mark.parametrize("damage", ["model.safetensors", "run.json"])
def test_a_damaged_run_is_refused(
    damage: str, trained: tuple[Path, Finished], test_folder: Path, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "run.json", "checksums.sha256"):
        content = (trained[0] / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2] if name == damage else content)
    done = invoke("predict", tmp_path, test_folder, "--out", tmp_path / "preds.csv", "--device", "cpu")
    assert_refused(done, damage, "damaged")
    assert not (tmp_path / "preds.csv").exists()


def test_predict_says_what_it_cannot_read(trained: tuple[Path, Finished], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "none").mkdir()
    out = tmp_path / "preds.csv"
    assert_refused(invoke("predict", trained[0], tmp_path / "nope.png", "--out", out), "nope.png")
    assert_refused(invoke("predict", trained[0], tmp_path / "none", "--out", out), "no images", "none")
    assert_refused(invoke("predict", trained[0], tmp_path / "x.png", "--out", out), "x.png")
    assert not out.exists()


def test_predict_survives_file_names_that_are_no_text(
    trained: tuple[Path, Finished], test_folder: Path, tmp_path: Path
) -> None:
    strange = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(strange, "wb") as file:
            file.write((test_folder / "cat" / "000.png").read_bytes())
    except OSError:
        pytest.skip("this file system only takes names that are text")
    done = invoke("predict", trained[0], tmp_path, "--out", tmp_path / "preds.csv", "--device", "cpu")
    assert done.code == 0, done
    assert len(rows_of(tmp_path / "preds.csv")[1]) == 1


def test_evaluate_refuses_a_class_that_the_run_does_not_know(trained: tuple[Path, Finished], tmp_path: Path) -> None:
    strange = write_folder(tmp_path / "d", classes=("cat", "unicorn"))
    assert_refused(invoke("evaluate", trained[0], "--clean", strange, "--device", "cpu"), "unicorn")
    done = invoke("evaluate", trained[0], "--triggered", strange, "--target", "unicorn", "--device", "cpu")
    assert_refused(done, "'unicorn'", "--target")


@pytest.mark.parametrize("args", [("poison",), ("predict",)])
def test_the_working_folder_as_out_is_no_crash(
    args: tuple[str, ...],
    npz: Path,
    trained: tuple[Path, Finished],
    test_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if args == ("poison",):
        done = invoke("poison", npz, "--out", ".", "--attack", "badnets", "--rate", 0.1, "--target", 0)
        assert done.code == 0, done
        assert (tmp_path / "train" / "manifest.csv").exists()
    else:
        assert_refused(invoke("predict", trained[0], test_folder, "--out", ".", "--device", "cpu"), "write")


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(npz: Path, tmp_path: Path) -> None:
    done = invoke(
        *("train", npz, "--out", tmp_path / "run", "--defence", "none", "--device", "cpu", "--model", "wrn-10-1"),
        *("--epochs", 2, "--set", "train.lr=1e38", "--set", "train.schedule=constant", "--quiet"),
    )
    assert_refused(done, "'train'", "epoch", "train.lr")
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    kept = tmp_path / "run" / "checkpoints"
    assert (str(kept) in done.err) == kept.exists(), "a checkpoint is named where there is one"


# --- a full disk ---------------------------------------------------------------------------------------------------


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
def test_a_full_disk_in_training(where: str, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, _full)
    done = invoke("train", npz, "--out", tmp_path / "run", *FAST, "--quiet")
    assert_refused(done, "No space left", str(tmp_path / "run"))
    monkeypatch.undo()
    assert not (tmp_path / "run" / "run.json").exists()
    assert not [name for name in files_below(tmp_path) if "partial" in name]


def test_a_full_disk_in_predict(
    trained: tuple[Path, Finished], test_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _full)
    done = invoke("predict", trained[0], test_folder, "--out", tmp_path / "preds.csv", "--device", "cpu")
    assert_refused(done, "No space left", "preds.csv")
    assert files_below(tmp_path) == set()


def test_a_full_disk_in_poison(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = Image.Image.save, []

    def save(image: Image.Image, path: Path) -> None:
        written.append(path)
        if len(written) > 20:
            _full()
        real(image, path)

    monkeypatch.setattr(Image.Image, "save", save)
    done = invoke(
        *("poison", npz, "--out", tmp_path / "out", "--attack", "badnets", "--rate", 0.1, "--target", 0, "--quiet")
    )
    assert_refused(done, "No space left", "out")
    assert files_below(tmp_path) == set()


def test_a_full_disk_under_the_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: os.terminal_size((0, 0)) and type("D", (), {"free": 0})())
    done = invoke("train", folder, "--out", tmp_path / "run", *FAST)
    assert_refused(done, "no space left", os.environ["ANTIBACKDOOR_CACHE"])
    assert not (tmp_path / "run").exists()


def _command(*args: object, env: dict[str, str] | None = None, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "antibackdoor", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **(env or {})},
        **options,
    )


def test_writes_that_really_fail_leave_nothing_half_written(npz: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails in the middle of a write, as a full disk does, and needs no mount."""
    done = _command(
        *("train", npz, "--out", tmp_path / "run", *FAST, "--quiet"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)),
    )
    assert_refused(Finished(done.returncode, done.stdout, done.stderr), str(tmp_path / "run"))
    assert files_below(tmp_path) == {"run/config.json"}


def test_a_really_full_disk(npz: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    try:
        done = invoke("train", npz, "--out", disk / "run", *FAST, "--quiet")
        assert_refused(done, str(disk / "run"))
        assert not [name for name in files_below(disk) if "partial" in name or name.endswith("run.json")]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- as a process --------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['antibackdoor', '--help']\nfrom antibackdoor.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("demo", "train", "scan", "poison", "predict", "evaluate", "report", "list", "doctor"):
        assert name in done.stdout


def test_the_version_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['antibackdoor', '--version']\nfrom antibackdoor.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate', 'pydantic', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"antibackdoor {version('antibackdoor')}\n"


def test_the_installed_command_exits_with_2() -> None:
    done = _command("train", "/nope/data", "--out", "/nope/run")
    assert_refused(Finished(done.returncode, done.stdout, done.stderr), "/nope/data")


def test_output_into_a_closed_pipe_is_no_fault() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "antibackdoor", "list", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout is not None
    assert listing.stderr is not None
    listing.stdout.close()
    message = listing.stderr.read().decode()
    listing.stderr.close()
    listing.wait(60)
    assert "fault of ours" not in message
    assert "Traceback" not in message


def test_a_fault_of_ours_exits_with_1_and_can_show_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("antibackdoor.catalogue.diagnose", broken)
    done = invoke("doctor")
    assert done.code == 1
    assert len(done.err.strip().splitlines()) == 1
    assert "unforeseen" in done.err
    assert "ANTIBACKDOOR_DEBUG" in done.err
    monkeypatch.setenv("ANTIBACKDOOR_DEBUG", "1")
    with pytest.raises(RuntimeError, match="unforeseen"):
        invoke("doctor")


def test_an_interrupt_tells_how_to_go_on(npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("antibackdoor.pipeline.run", interrupted)
    done = invoke("train", npz, "--out", tmp_path / "run", *FAST)
    assert done.code == 130
    assert "--resume" in done.err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x"), "Too many open files (/x)"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/x"), "Read-only file system (/x)"),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_ours(
    error: Exception, said: str, npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("antibackdoor.run_setup.load_data", fail)
    assert_refused(invoke("train", npz, "--out", tmp_path / "run", *FAST, "--quiet"), said)
