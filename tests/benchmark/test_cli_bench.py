"""The command ``bench``: the grid of continuous integration from end to end, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from end_to_end import invoke

from antibackdoor import plugins
from antibackdoor.benchmark import read_records

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GRIDS, RESULTS = BENCHMARKS / "grids", BENCHMARKS / "results"


def written(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture
def config(values, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(values()), encoding="utf-8")
    return path


def precisions(records):
    return {record["device"]["precision"] for record in records}


def assert_refused(done, *named):
    assert done.code == 2, done
    [line] = done.err.strip().splitlines()
    assert line.startswith("antibackdoor: ")
    assert "fault of ours" not in line
    for text in named:
        assert text in line


def test_two_cells_from_end_to_end(tmp_path):
    out = tmp_path / "out"
    done = invoke("bench", GRIDS / "two_cells.yaml", "--out", out, "--jobs", 1)
    assert done.code == 0, done
    assert "2 cells: 2 run now, 0 from before, 0 failed" in done.out
    for name in ("table.md", "table.csv", "table.tex", "leaderboard.html"):
        assert (out / name).stat().st_size > 0
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (out / "cells").iterdir()]
    assert sorted(record["cell"]["attack"] for record in records) == ["badnets", "none"]
    attacked = next(record for record in records if record["cell"]["attack"] == "badnets")
    assert attacked["metrics"]["n_poison"] == 40
    assert attacked["control"]["asr"] is not None
    # Another precision gives other figures; there the grid is held against itself alone.
    same = precisions(records) == precisions(read_records(RESULTS / "two_cells"))
    against = RESULTS / "two_cells" if same else out
    again = invoke("bench", GRIDS / "two_cells.yaml", "--out", out, "--quiet", "--against", against)
    assert again.code == 0, again
    assert "2 cells: 0 run now, 2 from before, 0 failed" in again.out
    assert "every figure is inside the spread" in again.out
    assert "to run" not in again.out


def test_a_difference_and_a_failure_exit_with_one(config, tmp_path, no_summaries):
    out = tmp_path / "out"
    assert invoke("bench", config, "--out", out, "--jobs", 1).code == 0
    reference = tmp_path / "reference"
    (reference / "cells").mkdir(parents=True)
    (reference / "grid.json").write_bytes((out / "grid.json").read_bytes())
    for path in (out / "cells").iterdir():
        record = json.loads(path.read_text(encoding="utf-8"))
        record["metrics"]["ca"] -= 0.5 if record["cell"]["defence"] == "abl-modified" else 0
        (reference / "cells" / path.name).write_text(json.dumps(record), encoding="utf-8")
    differs = invoke("bench", config, "--out", out, "--against", reference)
    assert differs.code == 1
    lines = differs.err.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("differs: pets ") and " abl-modified " in line for line in lines)
    fails = invoke("bench", config, "--out", out, "--set", "rates=[0.9]", "--jobs", 1)
    assert fails.code == 1
    assert "4 cells: 2 run now, 2 from before, 2 failed" in fails.out
    assert fails.err.startswith("failed: pets badnets@0.9 none wrn-10-1 seed 0: PoisonError: ")
    kept = invoke("bench", config, "--out", out, "--set", "rates=[0.9]", "--keep-failed")
    assert kept.code == 1
    assert "0 run now" in kept.out


BROKEN = """
from dataclasses import dataclass
from antibackdoor.defences.none import NoDefence

@dataclass(frozen=True)
class Broken(NoDefence):
    "Fails."

    def run(self, *_, **__):
        return {}["gone"]

DEFENCES = {"broken": Broken}
"""


def test_an_error_that_is_not_ours_says_where(values, tmp_path, no_summaries):
    plugin, path, out = tmp_path / "own.py", tmp_path / "grid.yaml", tmp_path / "out"
    plugin.write_text(BROKEN, encoding="utf-8")
    path.write_text(yaml.safe_dump(values(defences=["broken"], rates=[0.9])), encoding="utf-8")
    try:
        failed = invoke("bench", path, "--out", out, "--jobs", 1, "--plugin", plugin)
    finally:
        for loaded in plugins.from_files():
            plugins.forget(loaded)
    ours, theirs = sorted(failed.err.strip().splitlines(), key=lambda line: "KeyError" in line)[-2:]
    assert "PoisonError" in ours
    assert not ours.endswith("]")
    assert re.search(r"KeyError: 'gone' \[pipeline\.py:\d+ _run > pipeline\.py:\d+ _train > own\.py:10 run\]$", theirs)


def test_a_failure_recorded_without_a_place_is_read(config, tmp_path, no_summaries):
    out = tmp_path / "out"
    finished = invoke("bench", config, "--out", out, "--set", "rates=[0.9]", "--jobs", 1)
    assert finished.code == 1
    for path in (out / "cells").iterdir():
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["error"]:
            record["error"] = {"type": "KeyError", "message": "'gone'"}
            del record["sha256"]  # as those of version 0.1, which have none
            path.write_text(json.dumps(record), encoding="utf-8")
    kept = invoke("bench", config, "--out", out, "--set", "rates=[0.9]", "--keep-failed")
    assert all(line.endswith("KeyError: 'gone'") for line in kept.err.strip().splitlines())


def test_data_and_settings_of_the_command_line(values, pets, tmp_path, no_summaries):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(values(data=[{"name": "pets", "test": pets["test"]}])), encoding="utf-8")
    out = tmp_path / "out"
    assert_refused(invoke("bench", path, "--out", out), "data.pets.source", "--data pets=DIR")
    assert_refused(invoke("bench", path, "--out", out, "--data", "pets"), "--data 'pets'", "NAME=SOURCE")
    assert_refused(invoke("bench", path, "--out", out, "--data", "pet=x"), "'pet'", "Did you mean 'pets'")
    assert not out.exists()
    given = ("--data", f"pets={pets['source']}", "--set", "seeds=[3]", "--set", "skip=[{defence: abl-modified}]")
    done = invoke("bench", path, "--out", out, *given, "--device", "cpu", "--jobs", 1)
    assert done.code == 0, done
    assert "pets badnets@0.2 none wrn-10-1 seed 3: CA" in done.out
    assert len(list((out / "cells").iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--set", "attacks=[badnet]"), ("'badnet'", "Did you mean 'badnets'")),
        (("--set", "seeds=[]"), ("seeds: empty",)),
        (("--set", "sedes=[1]"), ("'sedes'", "Did you mean 'seeds'")),
        (("--jobs", "0"), ("--jobs", "at least 1")),
        (("--ray", "auto", "--jobs", "2"), ("--jobs is for one machine",)),
        (("--against", "nowhere"), ("nowhere", "holds no grid")),
    ],
)
def test_bad_input_gets_one_line_and_touches_nothing(config, tmp_path, arguments, named):
    out = tmp_path / "out"
    assert_refused(invoke("bench", config, "--out", out, *arguments), *named)
    assert not out.exists()


def test_a_folder_of_another_format_or_of_something_else(config, tmp_path):
    for name, content, message in (
        ("grid.json", '{"format": "antibackdoor grid 0"}', "is of another format"),
        ("thesis.tex", "years", "holds other files (thesis.tex)"),
    ):
        out = tmp_path / name.split(".")[0]
        out.mkdir()
        (out / name).write_text(content, encoding="utf-8")
        assert_refused(invoke("bench", config, "--out", out), str(out), message)
        assert written(out) == {name: content.encode()}
    assert_refused(invoke("bench", tmp_path / "gone.yaml", "--out", tmp_path / "o"), "no configuration file")
