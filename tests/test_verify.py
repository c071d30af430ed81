"""``antibackdoor verify``, and the checksums that it compares."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from end_to_end import FAST, Finished, invoke, reseal, write_folder, write_npz
from safetensors.torch import load_file, save_file

from antibackdoor import storage
from antibackdoor.errors import RunExistsError, StorageError
from antibackdoor.files import atomic_write_bytes, locked, pack_tensors, unpack_tensors


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_run, tmp_path / "run")


def refused(done: Finished, *named: str) -> None:
    assert done.code == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert all(name in done.out + done.err for name in named), done


def test_a_run_that_is_whole(run: Path) -> None:
    done = invoke("verify", run)
    assert (done.code, done.err) == (0, "")
    names = [line.split()[1] for line in done.out.splitlines()[:-1]]
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert set(names) == files
    assert done.out.splitlines()[-1] == f"{run}: all {len(files)} files are what was written"


def test_sha256sum_reads_the_same_checksums(run: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    subprocess.run(["sha256sum", "--check", "--strict", "checksums.sha256"], cwd=run, check=True, capture_output=True)


def test_every_file_with_a_flipped_byte_is_named(run: Path) -> None:
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        before = path.read_bytes()
        path.write_bytes(before[:-5] + bytes([before[-5] ^ 4]) + before[-4:])
        refused(invoke("verify", run), path.name)
        path.write_bytes(before)


def test_every_file_that_is_missing_is_named(run: Path) -> None:
    for path in sorted(path for path in run.iterdir() if path.is_file() and path.name != "run.json"):
        before = path.read_bytes()
        path.unlink()
        refused(invoke("verify", run), path.name)
        path.write_bytes(before)


def test_what_is_no_run(tmp_path: Path) -> None:
    refused(invoke("verify", tmp_path / "none"), "no run folder")
    refused(invoke("verify", tmp_path), "holds no run")


def test_an_interrupted_run(run: Path) -> None:
    (run / "run.json").unlink()
    done = invoke("verify", run)
    assert done.code == 0
    assert all(line.startswith("whole    checkpoints/") for line in done.out.splitlines()[:-1])


def test_a_run_of_the_first_version_is_read_and_cannot_be_verified(run: Path) -> None:
    (run / "checksums.sha256").unlink()
    weights = run / "model.safetensors"
    save_file(load_file(weights), weights)  # without metadata, as that version wrote it
    record = run / "run.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 1'))
    storage.load_run(run)
    storage.load_model(run, storage.read_record(run))
    refused(invoke("verify", run), "version 0.1")


def test_weights_that_are_not_numbers_are_refused(run: Path, tmp_path: Path) -> None:
    weights = load_file(run / "model.safetensors")
    next(value for value in weights.values() if value.is_floating_point())[:] = float("nan")
    (run / "model.safetensors").write_bytes(pack_tensors(weights, {"format": "antibackdoor model 1"}))
    reseal(run)
    (tmp_path / "pictures").mkdir()
    done = invoke("predict", run, tmp_path / "pictures", "--out", tmp_path / "p.csv", "--device", "cpu")
    refused(done, "model.safetensors", "not a number")


def test_weights_whose_answers_overflow_are_refused(run: Path, tmp_path: Path) -> None:
    """Every weight is a number, what they come to is none."""
    weights = load_file(run / "model.safetensors")
    for value in weights.values():
        if value.ndim == 2:
            value.fill_(3e38)
    (run / "model.safetensors").write_bytes(pack_tensors(weights, {"format": "antibackdoor model 1"}))
    reseal(run)
    pictures = write_folder(tmp_path / "pictures", 2, classes=("0", "1", "2"))
    out = tmp_path / "p.csv"
    refused(invoke("predict", run, pictures, "--out", out, "--device", "cpu"), str(run), "not a number")
    assert not out.exists()
    refused(invoke("evaluate", run, "--clean", pictures, "--device", "cpu"), str(run), "not a number")


def test_the_report_written_again_is_whole(run: Path) -> None:
    (run / "report.html").write_text("changed")
    refused(invoke("verify", run), "report.html")
    assert invoke("report", run).code == 0
    assert invoke("verify", run).code == 0


def test_two_processes_never_write_one_run(run: Path, tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz", 8)
    with locked(run / ".lock"):
        done = invoke("train", data, "--out", run, *FAST, "--quiet", "--overwrite")
    refused(done, "another process (process ", "writes a run there")
    assert invoke("verify", run).code == 0
    assert not (run / ".lock").exists() or (run / ".lock").unlink() is None


def test_a_lock_that_is_held_says_by_whom(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / ".lock"), pytest.raises(RunExistsError, match=r"taken \(process \d+\)"):
        locked(tmp_path / "a" / ".lock", busy="taken{by}").__enter__()
    with locked(tmp_path / "a" / ".lock", busy="taken{by}", leave=False):
        pass
    assert list((tmp_path / "a").iterdir()) == []


def test_tensors_have_one_form_and_no_bit_of_it_can_change() -> None:
    tensors = {"b": torch.arange(3.0), "ä": torch.zeros(2, dtype=torch.int64)}
    content = pack_tensors(tensors, {"z": "1", "a": "ö"})
    assert content == pack_tensors(dict(reversed(tensors.items())), {"a": "ö", "z": "1"})
    header, read = unpack_tensors(content)
    assert header == {"a": "ö", "z": "1"}
    assert all(torch.equal(read[name], value) for name, value in tensors.items())
    for place in range(len(content)):
        for bit in (1, 32):
            changed = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
            with pytest.raises(StorageError):
                unpack_tensors(changed)
    for size in range(len(content)):
        with pytest.raises(StorageError):
            unpack_tensors(content[:size])


def test_what_is_no_regular_file_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    atomic_write_bytes(Path("/dev/null"), b"gone")
    assert Path("/dev/null").is_char_device()


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)
    atomic_write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
