"""The command from outside: runs that cannot be reviewed, images that moved, a kill in the middle."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from end_to_end import Finished, invoke, write_poisoned_npz
from PIL import Image

from antibackdoor.config import RunConfig
from antibackdoor.data.sources import load
from antibackdoor.decisions import read_decisions
from antibackdoor.files import locked
from antibackdoor.pipeline import prepare_poison
from antibackdoor.review.board import Query
from antibackdoor.review.likeness import cluster, ordinary_of, shrink
from antibackdoor.review.server import open_board

pytest.importorskip("uvicorn")


def refused(done: Finished, *named: str) -> None:
    assert done.code == 2, done
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(name in done.err for name in named), done


def review(run: Path, *more: object) -> Finished:
    return invoke("review", run, "--no-browser", "--quiet", *more)


def test_what_is_no_run(tmp_path: Path) -> None:
    refused(review(tmp_path / "none"), "no run folder")
    assert not (tmp_path / "none").exists()
    refused(review(tmp_path), "no finished run")


def test_images_that_are_gone_and_where_they_are_now(run: Path, images: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(images, moved)
    refused(review(run), str(images), "--data DIR")
    refused(review(run, "--data", tmp_path / "nowhere"), "nowhere", "--data DIR")
    board = open_board(run, data=str(moved))
    assert (board.pictures.places >= 0).all()
    assert not board.pictures.changed.any()


def test_another_folder_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for name in ("x", "y"):
        (other / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (12, 12)).save(other / name / f"{number}.png")
    refused(review(run, "--data", other), "holds none of the 180 images of the run", "--data DIR")


def test_images_that_were_removed_are_left_blank(run: Path, images: Path) -> None:
    (images / "cat" / "003.png").unlink()
    board = open_board(run, near=30)
    assert np.flatnonzero(board.pictures.places < 0).tolist() == [3]
    assert not board.item(3)["there"]
    assert board.clusters[3] == -1
    assert board.tally()["images"] == 54
    seen = board.pictures.pixels(np.array([4]))[0].transpose(1, 2, 0)
    assert np.array_equal(seen, np.array(Image.open(images / "cat" / "004.png")))


def test_images_that_were_changed_are_noticed(run: Path, images: Path) -> None:
    Image.new("RGB", (12, 12), "red").save(images / "owl" / "003.png")
    assert np.flatnonzero(open_board(run).pictures.changed).tolist() == [123]


def test_an_npz_under_another_name(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_poisoned_npz(tmp_path / "a.npz")
    data = load(path).train
    flagged = torch.arange(len(data)) >= len(data) - 18
    run = make_run(tmp_path / "run", RunConfig.parse({"data": {"source": str(path)}}), data, flagged)
    path.rename(tmp_path / "b.npz")
    board = open_board(run, data=str(tmp_path / "b.npz"))
    assert np.array_equal(board.pictures.images, data.images.numpy())


def test_an_experiment_shows_what_was_planted(make_run: Callable[..., Path], images: Path, tmp_path: Path) -> None:
    attack = {"name": "badnets", "rate": 0.1, "target": "dog"}
    config = RunConfig.parse({"data": {"source": str(images), "limit": 150}, "attack": attack, "device": "cpu"})
    truth = prepare_poison(config).train
    run = make_run(tmp_path / "run", config, truth.observed, truth.poison)
    board = open_board(run)
    assert np.array_equal(board.pictures.images, truth.observed.images.numpy())
    assert not board.pictures.changed.any()


def test_a_class_in_doubt_comes_first_though_nothing_is_flagged(
    make_run: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    data = load(images).train
    config = RunConfig.parse({"data": {"source": str(images)}})
    run = make_run(tmp_path / "run", config, data, torch.zeros(len(data), dtype=torch.bool), doubtful=(2,))
    board = open_board(run, near=20)
    assert np.flatnonzero(board.near).tolist() == [*range(20), *range(120, 140)]
    key, rows = board.groups(Query(by="class"))[0]
    assert (key, len(rows), board.verdict(key)) == (2, 20, "undecided")
    assert set(board.groups(Query())[0][1].tolist()) <= set(range(120, 140))


def test_a_damaged_file_of_decisions(run: Path) -> None:
    (run / "decisions.csv").write_text("id,decision\ncat/000.png,burn\n")
    refused(review(run), "decisions.csv, line 2", "burn")


def test_one_process_reviews_a_run(run: Path) -> None:
    with locked(run / ".review.lock"):
        refused(review(run), "another process", "reviews this run")


def test_a_port_that_is_taken(run: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        refused(review(run, "--port", other.getsockname()[1]), "--port", "in use")


def test_without_the_server(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    refused(review(run), "uvicorn", "pip install 'antibackdoor[review]'")


def test_the_command_until_it_is_interrupted(run: Path) -> None:
    command = [sys.executable, "-m", "antibackdoor", "review", str(run), "--no-browser", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.search(r"(http://127\.0\.0\.1:\d+)/[\w-]{32}/", line)
        assert match, line
        with urllib.request.urlopen(f"{match[0]}api/run", timeout=120) as answer:
            assert b'"flagged":24' in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{match[1]}/guess/api/run", timeout=120)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert out == f"decisions: {run / 'decisions.csv'} (0 of 124 images decided)\n"
    assert not (run / ".review.lock").exists()


def test_what_was_said_to_be_saved_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "decisions.csv"
    code = (
        "import sys, pathlib; from antibackdoor.review.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]), 'tester')\n"
        "for i in range(100000):\n"
        "    journal.decide({f'a/{i}.png': ('drop', ''), f'b/{i}.png': ('keep', '')})\n"
        "    if i % 7 == 6: journal.undo()\n"
        "    else: print(i, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(40)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    found = {one.id: one.decision for one in read_decisions(path)}
    for i in said:
        assert (found[f"a/{i}.png"], found[f"b/{i}.png"]) == ("drop", "keep")
    assert len(found) - 2 * len(said) in (0, 2)  # what was being written: all of it, or nothing


def test_a_patch_decides_what_is_alike() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 120, (200, 3, 40, 40), dtype=np.uint8)
    images[:100, :, -6:, -6:] = 255
    ordinary = ordinary_of(shrink(rng.integers(0, 120, (200, 3, 40, 40), dtype=np.uint8)))
    groups = cluster(images, ordinary)
    assert not set(groups[:100].tolist()) & set(groups[100:].tolist())
    assert np.array_equal(groups, cluster(images, ordinary))
    assert cluster(images[:5], ordinary).tolist() == [0] * 5
    assert cluster(np.repeat(images[:1], 50, axis=0), ordinary).shape == (50,)
