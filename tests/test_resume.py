"""Killed runs: ``--resume`` continues in any phase, to the same bits as a run that nobody stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import invoke, write_poisoned_npz
from safetensors import safe_open

# Phases long enough to be hit in the middle; every one of them ends within seconds.
COMMON = ("--device", "cpu", "--model", "wrn-10-1", "--quiet", "--set", "train.batch_size=16")
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "abl-modified": (
        ("isolate", "fine-tune", "unlearn"),
        (
            *("--defence", "abl-modified", "--epochs", "12", "--set", "defence.isolation_epochs=12"),
            *("--set", "defence.unlearn_epochs=30", "--set", "defence.share=0.1", "--set", "defence.anchors=4"),
        ),
    ),
    "abl-paper": (
        ("isolate", "joint"),
        (
            *("--defence", "abl-paper", "--set", "defence.epochs=24", "--set", "defence.turning_epoch=12"),
            *("--set", "defence.milestones=[20]", "--set", "defence.batch_size=16", "--set", "defence.cap=2.0"),
        ),
    ),
    "none": (("train",), ("--defence", "none", "--epochs", "16")),
    # The detector's phases are an epoch each: none of them can be met unfinished.
    "witnesses": (("train",), ("--epochs", "16", "--set", "defence.witness=none")),
}


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_poisoned_npz(tmp_path_factory.mktemp("data") / "bad.npz")


def is_running(checkpoint: Path) -> bool:
    """Whether the phase has begun and is not over, by its checkpoint."""
    if not checkpoint.exists():
        return False
    with safe_open(checkpoint, framework="np") as file:
        return not json.loads((file.metadata() or {})["done"])


def kill_in(phase: str, arguments: list[str], run: Path) -> None:
    """Start the command, and kill it without warning after the first new checkpoint of a phase."""
    checkpoint = run / "checkpoints" / f"{phase}.safetensors"
    # The number of threads decides the order of additions, so it has to be that of this process.
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    process = subprocess.Popen(
        [sys.executable, "-m", "antibackdoor", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert process.poll() is None, f"ended before phase {phase}: {process.communicate()[1].decode()}"
            assert time.monotonic() < deadline, f"phase {phase} did not begin"
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert is_running(checkpoint), f"the kill came after the end of phase {phase}, so that nothing was shown"
    assert not (run / "run.json").exists()


def losses_of(run: Path) -> np.ndarray:
    with np.load(run / "history.npz", allow_pickle=False) as arrays:
        return arrays["losses"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_in_every_phase_ends_like_one_that_was_not(method: str, npz: Path, tmp_path: Path) -> None:
    phases, settings = METHODS[method]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = invoke("train", npz, "--out", whole, *COMMON, *settings)
    assert done.code == 0, done

    arguments = ["train", str(npz), "--out", str(killed), *COMMON, *settings]
    for phase in phases:
        kill_in(phase, [*arguments, "--resume"] if killed.exists() else arguments, killed)
    done = invoke(*arguments, "--resume")
    assert done.code == 0, done

    for name in ("model.safetensors", "suspects.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert losses_of(killed).tobytes() == losses_of(whole).tobytes()
    records = [json.loads((run / "run.json").read_text()) for run in (whole, killed)]
    for key in ("config", "metrics", "verdict", "evidence", "model", "data"):
        assert records[0][key] == records[1][key], key
    assert not [path for path in killed.rglob("*") if "partial" in path.name]


def test_without_resume_a_killed_run_is_kept_and_named(npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(npz), "--out", str(run), *COMMON, *METHODS["none"][1]]
    kill_in("train", arguments, run)
    before = sorted(path.name for path in run.rglob("*"))
    done = invoke(*arguments)
    assert done.code == 2
    assert "--resume" in done.err
    assert sorted(path.name for path in run.rglob("*")) == before
    done = invoke("predict", run, npz.parent, "--out", tmp_path / "preds.csv")
    assert done.code == 2
    assert "--resume" in done.err


def _short(npz: Path, run: Path, *more: str) -> list[str]:
    return ["train", str(npz), "--out", str(run), *COMMON, "--defence", "none", "--epochs", "1", *more]


def test_resuming_a_finished_run_gives_the_same_files(npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(*_short(npz, run)).code == 0
    before = {name: (run / name).read_bytes() for name in ("model.safetensors", "suspects.csv")}
    arguments = [argument for argument in _short(npz, run, "--resume") if argument != "--quiet"]
    done = invoke(*arguments)
    assert done.code == 0, done
    assert f"{run}: this run is finished; nothing is trained again" in done.out
    assert "batches" not in done.out  # what the progress of a training says
    assert {name: (run / name).read_bytes() for name in before} == before


def test_resume_where_there_is_nothing_starts_a_run(npz: Path, tmp_path: Path) -> None:
    done = invoke(*_short(npz, tmp_path / "run", "--resume"))
    assert done.code == 0, done
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("per_class", [60, 40])
def test_resume_on_data_that_changed_is_refused(per_class: int, tmp_path: Path) -> None:
    npz, run = write_poisoned_npz(tmp_path / "bad.npz"), tmp_path / "run"
    assert invoke(*_short(npz, run)).code == 0
    write_poisoned_npz(npz, per_class=per_class, seed=1)
    done = invoke(*_short(npz, run, "--resume"))
    assert done.code == 2, done
    assert len(done.err.strip().splitlines()) == 1
    assert "data" in done.err


def test_a_damaged_checkpoint_is_named(npz: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(*_short(npz, run)).code == 0
    checkpoint = run / "checkpoints" / "train.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    done = invoke(*_short(npz, run, "--resume"))
    assert done.code == 2, done
    assert len(done.err.strip().splitlines()) == 1
    assert str(checkpoint) in done.err
    assert "--overwrite" in done.err
