"""The script for a borrowed GPU, all of it on a CPU, with tiny sizes; what it measures is not judged here."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from end_to_end import write_folder

from antibackdoor.benchmark import GridConfig, read_records

ROOT = Path(__file__).resolve().parents[2]
GRID = """
data:
  - {name: cifar10, limit: 40, limit_test: 20, model: wrn-10-1}
attacks: [badnets, wanet]
defences: [{name: abl-code, isolation_epochs: 1, tune_epochs: 1, unlearn_epochs: 1}]
train: {epochs: 1, batch_size: 20}
"""
SIZES = ["--speed-images", "32", "--speed-epochs", "3", "--batch-size", "16", "--jobs", "1"]


def script(folder: Path, *options: str, minutes: str = "9") -> subprocess.CompletedProcess[str]:
    (folder / "grid.yaml").write_text(GRID, encoding="utf-8")
    places = ["--grid", str(folder / "grid.yaml"), "--results", str(folder / "results"), "--carried", str(folder)]
    environment = {**os.environ, "OUT": str(folder / "out"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts" / "gpu.sh"), minutes, "--device", "cpu", *places, *SIZES, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gpu")


@pytest.fixture(scope="module")
def run(folder: Path) -> subprocess.CompletedProcess[str]:
    steps = ["--steps", "speed", "tests", "first", "imagenette"]
    return script(folder, "--data", "cifar10=embedded", "--work", str(folder / "work"), *steps)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_work")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu")


def ends(folder: Path) -> dict[str, str]:
    return {row["step"]: row["ended"] for row in json.loads((folder / "out" / "summary.json").read_text())}


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "out" / "records.jsonl").read_text().splitlines()]


def test_every_step_runs_or_says_why_not(folder, run):
    assert run.returncode == 0, run.stdout + run.stderr
    assert ends(folder) == {
        "speed": "done",
        "tests": "done",
        "first": "done",
        "imagenette": "no imagenette: give --data imagenette=DIR, or carry it",
    }
    out = {path.name for path in (folder / "out").iterdir()}
    assert out == {
        "log.txt",
        "machine.json",
        "profile.txt",
        "records.jsonl",
        "speed.json",
        "summary.json",
        "tests.xml",
    }


def test_the_speed_of_every_way_and_a_profile(folder, run):
    found = json.loads((folder / "out" / "speed.json").read_text())
    assert [trial["compile"] for trial in found["trials"]] == ["off"]
    assert found["whole"]["seconds_excluding_compile"] > 0
    assert found["whole"]["details"]["lr"] == pytest.approx(0.1 * 16 / 128)
    assert found["profile"]["batches"] == 2
    assert "convolution" in (folder / "out" / "profile.txt").read_text()


def test_there_is_a_line_for_every_cell_and_none_twice(folder, run):
    cells = [(line["cell"]["attack"], line["cell"]["defence"]) for line in lines(folder)]
    assert len(cells) == len(set(cells)) == 4
    assert {attack for attack, _ in cells} == {"none", "badnets"}
    assert all(line["status"] == "done" for line in lines(folder))


def test_what_came_back_is_kept_and_not_run_again(folder, run, work, capsys):
    with (folder / "out" / "records.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"format": "cut o')
    places = ["--grid", str(folder / "grid.yaml"), "--results", str(folder / "results")]
    assert work.main(["keep", str(folder / "out"), *places]) == 0
    said = capsys.readouterr().out
    assert "4 records kept" in said
    assert "cut off is left out" in said
    assert len(read_records(folder / "results" / "paper")) == 4
    kept = {path.name for path in (folder / "results").iterdir()}
    assert kept == {"machine.json", "speed.json", "profile.txt", "tests.json", "paper"}
    counts = json.loads((folder / "results" / "tests.json").read_text())["counts"]
    assert set(counts) <= {"passed", "skipped"}

    (folder / "out" / "records.jsonl").unlink()
    again = script(folder, "--data", "cifar10=embedded", "--work", str(folder / "again"), "--steps", "speed", "attacks")
    assert again.returncode == 0, again.stdout + again.stderr
    assert ends(folder) == {"speed": "speed.json is committed; --again speed runs it once more", "attacks": "done"}
    assert "6 cells: 2 run now, 4 from before, 0 failed" in again.stdout
    # The control is trained again, for its weights did not come back.
    assert [line["cell"]["attack"] for line in lines(folder)] == ["none", "wanet", "wanet"]


def test_a_step_ends_with_its_time_and_with_all_that_it_started(gpu, tmp_path):
    code = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\ntime.sleep(60)"
    )
    started = time.monotonic()
    done = gpu.run_step("speed", [sys.executable, "-c", code], dict(os.environ), tmp_path / "log.txt", 1.0)
    assert time.monotonic() - started < 30
    assert (done.step, done.ended) == ("speed", "cut off")
    child = int((tmp_path / "log.txt").read_text().split()[1])
    state = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 10
    while state.exists() and " Z " not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or " Z " in state.read_text()


def test_with_no_time_left_nothing_is_begun(tmp_path):
    done = script(tmp_path, "--data", "cifar10=embedded", minutes="0.2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {ended for step, ended in ends(tmp_path).items() if step != "imagenette"} == {"no time left"}


def test_an_image_set_that_was_carried_is_unpacked(gpu, tmp_path):
    (tmp_path / "cifar10-jpeg.tar.xz").touch()
    for part in ("train", "test"):
        write_folder(tmp_path / "pets" / part, 3)
    (tmp_path / "unpack.py").write_text(
        "import pathlib, shutil, sys\nsource = pathlib.Path(__file__).parent / 'pets'\n"
        "shutil.copytree(source, pathlib.Path(sys.argv[1]) / sys.argv[2])",
        encoding="utf-8",
    )
    env = {**os.environ, "ANTIBACKDOOR_CACHE": str(tmp_path / "cache")}
    begun = gpu.unpacking(tmp_path, tmp_path / "work", ["cifar10", "imagenette"], env)
    assert list(begun) == ["cifar10"]
    assert gpu.wait_for(begun["cifar10"], time.monotonic() + 60) is None
    assert (tmp_path / "work" / "data" / "cifar10" / "train").is_dir()
    assert any((tmp_path / "cache").iterdir())  # decoded already


def test_images_that_cannot_be_unpacked_cost_their_steps_alone(tmp_path):
    (tmp_path / "cifar10-jpeg.tar.xz").touch()
    (tmp_path / "unpack.py").write_text("import sys; sys.exit(3)", encoding="utf-8")
    script(tmp_path, "--steps", "first", "imagenette")
    assert ends(tmp_path)["first"] == "its images could not be unpacked"
    assert ends(tmp_path)["imagenette"].startswith("no imagenette")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "no GPU here"),
        (["--minutes", "0"], "above 0"),
        (["--data", "cifar10"], "expected NAME=DIR"),
        (["--steps", "lunch"], "invalid choice"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, options, message):
    environment = {**os.environ, "PATH": "/nowhere"}  # no nvidia-smi
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--out", str(tmp_path / "out"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_part_has_the_cells_that_matter_most(work):
    grid = GridConfig.load(ROOT / "benchmarks" / "grids" / "paper.yaml")
    first, ten = (work.part_of(grid, step).cells() for step in ("first", "attacks"))
    assert {cell.attack for cell in first} == {"none", "badnets", "blend", "sig"}
    assert {cell.defence for cell in first} == {"none", "abl-code", "witnesses"}
    assert {cell.seed for cell in ten} == {0}
    assert len({cell.attack for cell in ten}) == 11
    assert {cell.key for cell in first} < {cell.key for cell in ten} < {cell.key for cell in grid.cells()}
    assert {(cell.data, cell.model) for cell in work.part_of(grid, "imagenette").cells()} == {
        ("imagenette", "resnet-34")
    }


def test_every_test_for_a_gpu_is_where_the_script_looks():
    marked = [
        path.relative_to(ROOT / "tests").as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(r"pytest\.mark\.gpu\b", path.read_text(encoding="utf-8"))
    ]
    assert [name for name in marked if not name.startswith("gpu/")] == []
    assert "gpu/test_cuda.py" in marked
