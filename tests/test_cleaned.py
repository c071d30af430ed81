"""``antibackdoor export``: the cleaned set, the quarantine and the list, which join one to one with the source."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from end_to_end import CLASSES, FAST, Finished, invoke, write_folder, write_npz
from PIL import Image

import antibackdoor
from antibackdoor.csvs import read_back
from antibackdoor.data.sources import load
from antibackdoor.decisions import Decision, write_decisions
from antibackdoor.imagelist import COLUMNS
from antibackdoor.naming import names_below
from antibackdoor.stored import class_verdicts

SCAN = (*FAST, "--set", "defence.share=0.2", "--quiet")


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with ``train/``, a folder in a class and a name that is a formula, and a run of it; not to be changed."""
    root = tmp_path_factory.mktemp("export")
    write_folder(root / "set" / "train", 10)
    write_folder(root / "set" / "test", 2, seed=1)
    (root / "set" / "train" / "cat" / "deep").mkdir()
    (root / "set" / "train" / "cat" / "001.png").rename(root / "set" / "train" / "cat" / "deep" / "001.png")
    (root / "set" / "train" / "cat").rename(root / "set" / "train" / "=cat")
    (root / "set" / "test" / "cat").rename(root / "set" / "test" / "=cat")
    done = invoke("scan", root / "set", "--out", root / "run", *SCAN)
    assert done.code == 0, done
    return root


def refused(done: Finished, *named: str) -> None:
    assert done.code == 2, done
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(name in done.err for name in named), done.err


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: read_back(value) for key, value in row.items()} for row in csv.DictReader(file)]


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [(), ("--copy",)])
def test_files_ids_and_lists_join_one_to_one(options: Sequence[str], scanned: Path, tmp_path: Path) -> None:
    done = invoke("export", scanned / "run", tmp_path / "out", *options, "--quiet")
    assert done.code == 0, done
    rows = rows_of(tmp_path / "out" / "images.csv")
    assert tuple(rows[0]) == COLUMNS
    suspects = {row["id"]: row for row in rows_of(scanned / "run" / "suspects.csv")}
    assert {row["id"] for row in rows} == set(suspects)
    source = {f"train/{name}": content for name, content in files_below(scanned / "set" / "train").items()}
    assert {row["id"] for row in rows} == set(source)
    flagged = [row["id"] for row in rows if row["suspect"] == "1"]
    assert 0 < len(flagged) < 30
    for row in rows:
        there = suspects[row["id"]]
        assert (row["label"], row["score"], row["suspect"]) == (there["label"], there["score"], there["flagged"])
        assert row["file"] == f"{'quarantine' if row['suspect'] == '1' else 'clean'}/{row['id']}"
        assert (tmp_path / "out" / row["file"]).read_bytes() == source[row["id"]]
        assert row["class_verdict"] == "undecided"  # a fixed share judges no class
    assert len(files_below(tmp_path / "out")) == 32
    links = {(tmp_path / "out" / row["file"]).stat().st_nlink > 1 for row in rows}
    assert links == {not options}
    assert f"{30 - len(flagged)} images" in done.out


@pytest.mark.parametrize("name", ["clean", "clean.csv"])
def test_a_cleaned_set_is_trained_on_under_the_same_ids(name: str, scanned: Path, tmp_path: Path) -> None:
    assert invoke("export", scanned / "run", tmp_path / "out", "--quiet").code == 0
    done = invoke("scan", tmp_path / "out" / name, "--out", tmp_path / "again", *SCAN)
    assert done.code == 0, done
    kept = {(row["id"], row["label"]) for row in rows_of(tmp_path / "out" / "images.csv") if row["suspect"] == "0"}
    assert {(row["id"], row["label"]) for row in rows_of(tmp_path / "again" / "suspects.csv")} == kept


def test_sets_of_hugging_face_go_round(scanned: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "out"
    assert invoke("export", scanned / "run", out, "--quiet").code == 0
    done = invoke("export", scanned / "run", out, "--to", "hf", "--overwrite", "--quiet")
    assert done.code == 0, done
    assert sorted(path.name for path in out.iterdir()) == ["clean", "images.csv", "quarantine"]
    rows = {row["id"]: row for row in rows_of(out / "images.csv")}
    assert set(rows) == {row["id"] for row in rows_of(scanned / "run" / "suspects.csv")}
    found = {}
    for part, suspect in (("clean", "0"), ("quarantine", "1")):
        held = datasets.load_from_disk(str(out / part)).cast_column("image", datasets.Image(decode=False))
        found[part] = [row["id"] for row in held]
        assert sorted(found[part]) == sorted(name for name, row in rows.items() if row["suspect"] == suspect)
        for row in held:
            listed = rows[row["id"]]
            assert listed["file"] == part
            assert held.features["label"].int2str(row["label"]) == listed["label"]
            assert row["score"] == pytest.approx(float(listed["score"]), rel=1e-4)
            assert row["image"]["bytes"] == (scanned / "set" / row["id"]).read_bytes()
            assert row["image"]["path"] == row["id"].rpartition("/")[2]
    again = load(out / "clean").train
    assert dict(zip(again.ids, (again.classes[label] for label in again.labels.tolist()), strict=True)) == {
        name: rows[name]["label"] for name in found["clean"]
    }


def test_sets_of_hugging_face_of_what_is_no_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    npz = write_npz(tmp_path / "d.npz", 10)
    assert invoke("scan", npz, "--out", tmp_path / "run", *SCAN).code == 0
    ids = [row["id"] for row in rows_of(tmp_path / "run" / "suspects.csv")]
    write_decisions(tmp_path / "d.csv", [Decision(name, "keep") for name in ids])  # the quarantine is empty
    options = ("--to", "hf", "--decisions", tmp_path / "d.csv", "--quiet")
    done = invoke("export", tmp_path / "run", tmp_path / "out", *options)
    assert done.code == 0, done
    again = load(tmp_path / "out" / "clean").train
    assert sorted(again.ids) == sorted(ids)
    pixels = np.load(npz)["images"]
    for name, image in zip(again.ids, again.images, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[int(name[-5:])])


def test_hugging_faces_package_is_named_where_it_is_missing(
    scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    refused(invoke("export", scanned / "run", tmp_path / "o", "--to", "hf"), "datasets", "antibackdoor[hub]")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("format", ["csv", "json", "parquet"])
def test_lists_say_the_same(format: str, scanned: Path, tmp_path: Path) -> None:
    out = tmp_path / f"list.{format}"
    done = invoke("export", scanned / "run", out, "--to", format)
    assert done.code == 0, done
    if format == "csv":
        rows = pd.DataFrame(rows_of(out)).astype({"score": float, "suspect": int})
    elif format == "json":
        rows = pd.DataFrame(json.loads(out.read_text(encoding="utf-8"))["images"])
    else:
        rows = pd.read_parquet(out)
    assert tuple(rows.columns) == COLUMNS
    assert all(Path(file).is_file() and file.endswith(name) for file, name in zip(rows.file, rows.id, strict=True))
    there = pd.DataFrame(rows_of(scanned / "run" / "suspects.csv")).set_index("id").loc[rows.id]
    assert np.allclose(rows.score, there.score.astype(float), rtol=1e-5)
    assert rows.suspect.astype(int).tolist() == there.flagged.astype(int).tolist()
    assert rows.label.tolist() == there.label.tolist()
    refused(invoke("export", scanned / "run", out, "--to", format), "--overwrite")
    assert invoke("export", scanned / "run", out, "--to", format, "--overwrite").code == 0


def test_decisions_go_before_the_defence(scanned: Path, tmp_path: Path) -> None:
    rows = rows_of(scanned / "run" / "suspects.csv")
    flagged = [row["id"] for row in rows if row["flagged"] == "1"]
    calm = [row["id"] for row in rows if row["flagged"] == "0"]
    own = calm[1].split("/")[1]
    made = [
        Decision(flagged[0], "keep"),
        Decision(flagged[1], "unsure"),
        Decision(calm[0], "drop"),
        Decision(calm[1], "relabel", label="dog" if own == "owl" else "owl"),
    ]
    write_decisions(tmp_path / "d.csv", made)
    done = invoke("export", scanned / "run", tmp_path / "out", "--decisions", tmp_path / "d.csv", "--quiet")
    assert done.code == 0, done
    found = {row["id"]: row for row in rows_of(tmp_path / "out" / "images.csv")}
    assert [found[one.id]["suspect"] for one in made] == ["0", "1", "1", "0"]
    assert [found[one.id]["decision"] for one in made] == ["keep", "unsure", "drop", "relabel"]
    moved = found[calm[1]]
    name = calm[1].split("/", 2)[2].removesuffix(".png")
    assert moved["label"] == made[3].label
    assert moved["file"] == f"clean/train/{made[3].label}/{name}~{own}.png"
    assert (tmp_path / "out" / moved["file"]).read_bytes() == (scanned / "set" / calm[1]).read_bytes()
    write_decisions(tmp_path / "d.csv", [Decision("dog/000.png", "drop")])
    refused(
        invoke("export", scanned / "run", tmp_path / "other", "--decisions", tmp_path / "d.csv"),
        "'dog/000.png'",
        "Did you mean 'train/dog/000.png'?",
    )


def test_images_that_are_no_files_become_files(tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "d.npz", 10)
    assert invoke("scan", npz, "--out", tmp_path / "run", *SCAN).code == 0
    done = invoke("export", tmp_path / "run", tmp_path / "out", "--quiet")
    assert done.code == 0, done
    pixels = np.load(npz)["images"]
    for row in rows_of(tmp_path / "out" / "images.csv"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / row["file"])), pixels[int(row["id"][-5:])])
        assert row["file"].split("/")[1:] == [row["label"], f"{row['id'][-5:]}.png"]


def test_a_source_that_is_called_otherwise_now_is_known(tmp_path: Path) -> None:
    npz = write_npz(tmp_path / "d.npz", 10)
    assert invoke("scan", npz, "--out", tmp_path / "run", *SCAN).code == 0
    npz.rename(tmp_path / "other.npz")
    done = invoke("export", tmp_path / "run", tmp_path / "out", "--data", tmp_path / "other.npz", "--quiet")
    assert done.code == 0, done
    assert {row["id"] for row in rows_of(tmp_path / "out" / "images.csv")} == {f"{npz}/{row:05d}" for row in range(30)}
    refused(
        invoke("export", tmp_path / "run", tmp_path / "b", "--data", write_npz(tmp_path / "e.npz", 9)), "other images"
    )


def test_images_in_tar_files_become_files(tmp_path: Path) -> None:
    folder, tars = write_folder(tmp_path / "f", 10), tmp_path / "tars"
    tars.mkdir()
    for part in range(2):
        with tarfile.open(tars / f"{part}.tar", "w") as tar:
            for path in sorted(folder.rglob("*.png"))[part::2]:
                label = tarfile.TarInfo(f"{path.parent.name}-{path.stem}.cls")
                label.size = len(path.parent.name)
                tar.add(path, f"{path.parent.name}-{path.stem}.png")
                tar.addfile(label, io.BytesIO(path.parent.name.encode()))
    assert invoke("scan", tars, "--out", tmp_path / "run", *SCAN).code == 0
    done = invoke("export", tmp_path / "run", tmp_path / "out", "--quiet")
    assert done.code == 0, done
    for row in rows_of(tmp_path / "out" / "images.csv"):
        name = row["id"].rpartition("/")[2]
        assert row["file"].split("/")[1:] == [row["label"], name]
        own = np.asarray(Image.open(folder / name.replace("-", "/")))
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / row["file"])), own)


def test_images_of_a_table_lie_under_their_class(tmp_path: Path) -> None:
    files = sorted(path.name for path in write_folder(tmp_path / "a", 10, classes=("x", "y", "z")).rglob("*.png"))
    rows = [f"{c}/{name},{c.upper()},img-{c}-{name[:3]}" for c in "xyz" for name in sorted(set(files))]
    (tmp_path / "a" / "set.csv").write_text("\n".join(["path,label,id", *rows]) + "\n", encoding="utf-8")
    assert invoke("scan", tmp_path / "a" / "set.csv", "--out", tmp_path / "run", *SCAN).code == 0
    done = invoke("export", tmp_path / "run", tmp_path / "out", "--quiet")
    assert done.code == 0, done
    for row in rows_of(tmp_path / "out" / "images.csv"):
        _, own, name = row["id"].split("-")
        assert row["file"].split("/")[1:] == [own.upper(), f"{row['id']}.png"]
        assert (tmp_path / "out" / row["file"]).read_bytes() == (tmp_path / "a" / own / f"{name}.png").read_bytes()


def test_a_source_that_is_not_what_was_looked_at_is_refused(scanned: Path, tmp_path: Path) -> None:
    run, moved = scanned / "run", tmp_path / "moved"
    shutil.copytree(scanned / "set", moved)
    assert invoke("export", run, tmp_path / "a", "--data", moved, "--quiet").code == 0
    (moved / "train" / "dog" / "999.png").write_bytes((moved / "train" / "dog" / "000.png").read_bytes())
    refused(invoke("export", run, tmp_path / "b", "--data", moved, "--quiet"), str(moved), "holds other images")
    (moved / "train" / "dog" / "999.png").unlink()
    Image.new("RGB", (12, 12)).save(moved / "train" / "dog" / "000.png")
    refused(invoke("export", run, tmp_path / "b", "--data", moved, "--quiet"), "other pixels", "scan it again")
    (moved / "train" / "dog" / "000.png").unlink()
    refused(invoke("export", run, tmp_path / "b", "--data", moved, "--quiet"), "1 of 30", "'train/dog/000.png'")
    refused(invoke("export", run, tmp_path / "b", "--data", tmp_path / "no", "--quiet"), str(tmp_path / "no"), "--data")
    refused(invoke("export", run, tmp_path / "b.csv", "--data", tmp_path / "no", "--to", "csv"), "--data")
    assert not (tmp_path / "b").exists()


def test_what_is_there_is_left_alone(scanned: Path, tmp_path: Path) -> None:
    run, out = scanned / "run", tmp_path / "out"
    before = files_below(scanned)
    assert invoke("export", run, out, "--quiet").code == 0
    refused(invoke("export", run, out, "--quiet"), str(out), "--overwrite")
    assert invoke("export", run, out, "--overwrite", "--quiet").code == 0
    (out / "mine.txt").write_text("mine")
    refused(invoke("export", run, out, "--overwrite", "--quiet"), str(out), "another folder")
    refused(invoke("export", run, scanned / "set" / "new", "--quiet"), "into the images")
    refused(invoke("export", run, scanned, "--overwrite", "--quiet"), str(scanned))
    refused(invoke("export", run, tmp_path, "--to", "csv"), "is a folder")
    refused(invoke("export", run, out / "mine.txt"), "is a file")
    refused(invoke("export", run, tmp_path / "x", "--to", "fodler"), "Did you mean 'folder'?")
    refused(invoke("export", tmp_path, tmp_path / "x"), "no finished run")
    assert files_below(scanned) == before


def test_another_disk_gets_symbolic_links(scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    done = invoke("export", scanned / "run", tmp_path / "out")
    assert done.code == 0, done
    assert "symbolic" in done.out + done.err
    links = [path for path in (tmp_path / "out" / "clean").rglob("*.png")]
    assert links
    assert all(path.is_symlink() and path.is_file() for path in links)


@pytest.mark.parametrize("count", range(6))
def test_a_kill_between_two_renames(count: int, scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, replace, done = tmp_path / "out", os.replace, list[object]()
    assert invoke("export", scanned / "run", out, "--quiet").code == 0
    whole = files_below(out)

    class KilledError(BaseException):
        pass

    def counted(source: object, target: object) -> None:
        if len(done) == count and "out" in str(target):
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            raise KilledError
        done.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted)
        with pytest.raises(KilledError):
            invoke("export", scanned / "run", out, "--quiet", "--overwrite")
        patch.undo()
    assert invoke("export", scanned / "run", out, "--quiet", "--overwrite").code == 0
    assert files_below(out) == whole


def test_runs_without_files_say_so(tmp_path: Path, blobs: Callable[..., antibackdoor.ImageSet]) -> None:
    data = blobs(60, 3, height=12, width=12)
    settings = {"train": {"epochs": 1, "batch_size": 16}}
    antibackdoor.scan(data, model="wrn-10-1", defence="none", out=tmp_path / "run", device="cpu", settings=settings)
    refused(invoke("export", tmp_path / "run", tmp_path / "out"), "in Python", "--data")
    assert invoke("export", tmp_path / "run", tmp_path / "list.csv", "--to", "csv").code == 0
    assert {row["file"] for row in rows_of(tmp_path / "list.csv")} == {""}
    npz = write_npz(tmp_path / "d.npz", 10)
    args = ("--set", "attack.name=badnets", "--set", "attack.rate=0.1", "--set", "attack.target=0")
    assert invoke("scan", npz, "--out", tmp_path / "planted", *SCAN, *args).code == 0
    refused(invoke("export", tmp_path / "planted", tmp_path / "out"), "antibackdoor poison")


def test_a_missing_package_is_named(scanned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    done = invoke("export", scanned / "run", tmp_path / "l.parquet", "--to", "parquet")
    refused(done, "pyarrow", "antibackdoor[tables]")


def test_names_below() -> None:
    ids = ["cat/a.jpg", "dog/a.jpg", "cat/deep/b.png", "train/owl/c.png", "data.npz/00007", "cat/..", "cat/a.png"]
    own = ["cat", "dog", "cat", "owl", "0", "cat", "cat"]
    assert names_below(ids, own, split=True) == [
        *("cat/a.jpg", "dog/a.jpg", "cat/deep/b.png", "train/owl/c.png", "0/00007", "cat/000005", "cat/a.png")
    ]
    placed = ["dog", *own[1:]]
    assert names_below(ids, own, placed, suffix=".png") == [
        *("dog/a~cat.png", "dog/a.png", "cat/deep/b.png", "owl/c.png", "0/00007.png", "cat/000005.png", "cat/a.png")
    ]
    many = names_below([f"{name}/a.png" for name in CLASSES for _ in range(3)], ["cat"] * 9, ["dog"] * 9)
    assert len(set(many)) == 9


def test_verdicts_of_classes() -> None:
    labels, flagged = np.array([0, 0, 1, 2]), np.array([False, True, False, False])
    none = np.zeros(4, dtype=bool)
    assert class_verdicts(labels, flagged, 3, "poisoned", [2]) == ["poisoned", "no sign of poison", "undecided"]
    assert class_verdicts(labels, none, 3, "undecided", [1]) == ["no sign of poison", "undecided", "no sign of poison"]
    assert class_verdicts(labels, none, 3, "undecided") == ["undecided"] * 3
    assert class_verdicts(labels, flagged, 3, "undecided") == ["undecided"] * 3
    assert class_verdicts(labels, none, 3, "no sign of poison") == ["no sign of poison"] * 3
