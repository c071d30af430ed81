"""Files of every version that there was: read, or refused in one line; and the oldest packages that are allowed."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from end_to_end import invoke
from PIL import Image

from antibackdoor import storage
from antibackdoor.advice import advise
from antibackdoor.benchmark import reading
from antibackdoor.benchmark.folder import read_records
from antibackdoor.errors import StorageError
from antibackdoor.training import Checkpoints

ROOT = Path(__file__).parents[1]
FIRST = Path(__file__).parent / "versions" / "0.1"  # written by that version: a run, one of its checkpoints, a grid
# Written by commit 5158953, the last with the defence filter: a set, and a run of it that calls it poisoned.
FILTER = Path(__file__).parent / "versions" / "filter"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(FIRST / "run", tmp_path / "run")


def test_a_run_of_the_first_version_is_read(run: Path) -> None:
    stored = storage.load_run(run)
    assert stored.labels.tolist() == [row % 3 for row in range(24)]
    assert stored.record.verdict in ("poisoned", "undecided", "no sign of poison")
    assert storage.load_model(run, stored.record)(np_images()).shape == (4, 3)


def np_images():
    import torch

    return torch.zeros(4, 1, 8, 8)


@pytest.mark.parametrize("command", [["report"], ["report", "--format", "sarif"], ["report", "--format", "json"]])
def test_every_command_takes_it(command: list[str], run: Path, tmp_path: Path) -> None:
    done = invoke(command[0], run, *command[1:])
    assert (done.code, done.err) == (0, "")
    done = invoke("compare", run, run)
    assert (done.code, done.err) == (0, "")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    done = invoke("predict", run, tmp_path / "a.png", "--out", tmp_path / "p.csv", "--device", "cpu", "--quiet")
    assert (done.code, done.err) == (0, "")
    done = invoke("export", run, tmp_path / "list.csv", "--to", "csv", "--quiet")
    assert done.code in (0, 2)
    assert done.err.count("\n") <= 1


@pytest.fixture(scope="module")
def of_filter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(FILTER, tmp_path_factory.mktemp("filter") / "made")


@pytest.mark.parametrize(
    "command",
    [
        *("report RUN", "report RUN --format text", "report RUN --format sarif", "report RUN --format json"),
        *("compare RUN RUN", "verify RUN", "export RUN OUT/cleaned --data SET --quiet"),
        "predict RUN OUT/a.png --out OUT/p.csv --device cpu --quiet",
    ],
)
def test_a_run_of_a_defence_that_is_gone_is_read(command: str, of_filter: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    places = {"RUN": of_filter / "run", "SET": of_filter / "set.npz"}
    words = [places.get(word, word.replace("OUT", str(tmp_path))) for word in command.split()]
    done = invoke(*words)
    assert (done.code, done.err) == (0, "")


def test_what_it_found_is_told(of_filter: Path) -> None:
    stored = storage.load_run(of_filter / "run")
    assert (stored.record.config["defence"]["name"], stored.record.verdict) == ("filter", "poisoned")
    assert stored.flagged.sum() == 87
    assert stored.class_verdicts[0] == "poisoned"
    assert "first those of class '0'" in advise(stored).next


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            ("--defence", "filter"),
            "defence 'filter' is no longer in this package: 'witnesses', the default, replaces it",
        ),
        ((), "was started with other settings (data, defence,"),
    ],
)
def test_a_run_of_a_defence_that_is_gone_is_not_resumed(given: tuple[str, ...], named: str, of_filter: Path) -> None:
    done = invoke("train", of_filter / "set.npz", "--out", of_filter / "run", "--resume", "--quiet", *given)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert named in done.err


def test_what_it_had_not_is_said(run: Path) -> None:
    done = invoke("verify", run)
    assert done.code == 2
    assert "version 0.1" in done.err
    assert done.err.count("\n") == 1


def test_a_checkpoint_of_the_first_version_is_refused() -> None:
    with pytest.raises(StorageError, match=r"isolate\.safetensors is damaged .*start again with --overwrite") as error:
        Checkpoints(FIRST / "checkpoints", resume=True, writes=False).load("isolate")
    assert "\n" not in str(error.value)


def test_a_grid_of_the_first_version_is_read() -> None:
    cells = reading.read(read_records(FIRST / "grid"))
    assert {cell.error for cell in cells} == {None}
    assert all("ca" in cell.figures for cell in cells)
    assert cells


def test_a_later_version_is_refused_in_one_line(run: Path) -> None:
    record = run / "run.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(StorageError, match="it is of format 99, not 2") as error:
        storage.load_run(run)
    assert "\n" not in str(error.value)


def test_the_oldest_versions_are_those_that_are_allowed() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [line for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if not line.startswith("#")]

    def padded(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in (version.split(".") + ["0", "0"])[:3])

    wanted = {name: padded(version) for name, version in (re.split(">=", line) for line in asked)}
    assert {name: padded(version) for name, version in (line.split("==") for line in lines)} == wanted
