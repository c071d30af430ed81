"""The network of a run as a file that runs without this package."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import FAST, invoke, write_folder, write_npz
from PIL import Image

from antibackdoor import portable


def test_the_exported_network_predicts_as_predict_does(finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "network.pt2"
    done = invoke("export", finished_run, file, "--to", "torch-export")
    assert done.code == 0, done
    assert str(file) in done.out

    folder = write_folder(tmp_path / "new", 3, seed=7)
    assert invoke("predict", finished_run, folder, "--out", tmp_path / "p.csv", "--device", "cpu").code == 0
    with (tmp_path / "p.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    about = {portable.ABOUT: ""}
    network = torch.export.load(file, extra_files=about).module()
    values = json.loads(about[portable.ABOUT])
    assert (values["channels"], values["height"], values["width"]) == (3, 12, 12)
    pixels = np.stack([np.asarray(Image.open(row["path"])).transpose(2, 0, 1) for row in rows])
    with torch.no_grad():
        found = network(torch.from_numpy(pixels))
    assert found.shape == (9, 3)
    assert [values["classes"][index] for index in found.argmax(1)] == [row["predicted"] for row in rows]
    # predict computes in the precision of the machine, which may be bfloat16.
    torch.testing.assert_close(
        found.max(1).values, torch.tensor([float(row["probability"]) for row in rows]), atol=0.02, rtol=0
    )

    again = invoke("export", finished_run, file, "--to", "torch-export")
    assert (again.code, len(again.err.splitlines())) == (2, 1)
    assert "--overwrite" in again.err


def test_onnx_predicts_as_predict_does(finished_run: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "network.onnx"
    done = invoke("export", finished_run, file, "--to", "onnx")
    assert done.code == 0, done
    folder = write_folder(tmp_path / "new", 3, seed=7)
    assert invoke("predict", finished_run, folder, "--out", tmp_path / "p.csv", "--device", "cpu").code == 0
    with (tmp_path / "p.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    values = json.loads(session.get_modelmeta().custom_metadata_map[portable.ABOUT])
    pixels = np.stack([np.asarray(Image.open(row["path"])).transpose(2, 0, 1) for row in rows])
    [found] = session.run(["probabilities"], {"images": pixels})
    assert found.shape == (9, 3)
    assert [values["classes"][index] for index in found.argmax(1)] == [row["predicted"] for row in rows]
    np.testing.assert_allclose(found.max(1), [float(row["probability"]) for row in rows], atol=0.02)
    [one] = session.run(["probabilities"], {"images": pixels[:1]})
    np.testing.assert_allclose(one, found[:1], atol=1e-5)


def test_packages_that_onnx_needs_are_named(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = invoke("export", finished_run, tmp_path / "n.onnx", "--to", "onnx")
    assert (done.code, len(done.err.splitlines())) == (2, 1), done
    assert "antibackdoor[onnx]" in done.err
    assert not (tmp_path / "n.onnx").exists()


def test_what_has_no_network_is_refused(finished_run: Path, tmp_path: Path) -> None:
    scanned = tmp_path / "run"
    assert invoke("scan", write_npz(tmp_path / "d.npz", 4), "--out", scanned, *FAST, "--quiet").code == 0
    done = invoke("export", scanned, tmp_path / "n.pt2", "--to", "torch-export")
    assert done.code == 2
    assert "a scan trains none" in done.err
    done = invoke("export", finished_run, tmp_path / "n.pt2", "--to", "torch-export", "--copy")
    assert done.code == 2
    assert "--copy" in done.err
    assert not (tmp_path / "n.pt2").exists()


def test_a_network_that_changes_on_the_way_is_not_written(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "_CLOSE", -1.0)
    done = invoke("export", finished_run, tmp_path / "n.pt2", "--to", "torch-export")
    assert done.code == 2
    assert "other probabilities" in done.err
    assert not (tmp_path / "n.pt2").exists()
