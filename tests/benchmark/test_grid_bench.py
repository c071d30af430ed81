"""A grid from its configuration to its records: everything once, nothing twice, whatever goes wrong on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import grid_stand_ins
import pytest
import yaml
from joblib import cpu_count

from antibackdoor import load_plugin, plugins
from antibackdoor.benchmark import LocalPool, local_pool, read_records, run_grid
from antibackdoor.benchmark.measure import Task
from antibackdoor.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_summaries")


def figures(records):
    """What two runs of one cell must agree on."""
    names = ("key", "cell", "status", "error", "metrics", "control", "verdict", "evidence", "curves", "config")
    return [{name: record[name] for name in names} for record in records]


def times_written(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}


@pytest.fixture
def deaths(tmp_path, monkeypatch):
    """Workers count their calls here, and die as many times as the file of a defence says."""
    folder = tmp_path / "deaths"
    folder.mkdir()
    monkeypatch.setenv(grid_stand_ins.MARK, str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    for name in ("perform", "_in_worker"):
        monkeypatch.setattr(f"antibackdoor.benchmark.pools.{name}", grid_stand_ins.perform_or_die)
    return folder


def test_every_cell_once_and_a_second_call_runs_nothing(grid, tmp_path, no_summaries):
    done = run_grid(grid(), tmp_path / "out")
    assert (len(done.records), done.ran, done.failures) == (4, 4, ())
    assert read_records(tmp_path / "out") == list(done.records)
    assert [record["cell"] for record in done.records] == [cell.names for cell in grid().cells()]
    before = times_written(tmp_path / "out")
    again = run_grid(grid(), tmp_path / "out")
    assert (again.records, again.ran) == (done.records, 0)
    assert times_written(tmp_path / "out") == before
    assert no_summaries == [(4, tmp_path / "out")] * 2


def test_only_what_is_missing_or_of_another_configuration_is_run(grid, tmp_path):
    out = tmp_path / "out"
    run_grid(grid(), out)
    before = times_written(out)
    changed = grid(
        rates=[0.2, 0.3], defences=[{"name": "abl-modified", "isolation_epochs": 1, "unlearn_epochs": 1}, "cbd"]
    )
    more = run_grid(changed, out)
    assert more.ran == len(changed.cells()) - 4
    assert {name: times_written(out)[name] for name in before} == before
    gone = out / "cells" / changed.cells()[-1].file
    lost = json.loads(gone.read_text(encoding="utf-8"))
    gone.write_text("half a rec", encoding="utf-8")
    mended = run_grid(changed, out)
    assert mended.ran == 1
    assert figures([json.loads(gone.read_text(encoding="utf-8"))]) == figures([lost])


OWN = """
from dataclasses import dataclass
from antibackdoor.defences.none import NoDefence

@dataclass(frozen=True)
class Mine(NoDefence):
    'Ordinary training under another name.'
    power: int = {power}

DEFENCES = {{"own-defence": Mine}}
"""


@pytest.fixture
def own_defence(tmp_path):
    """A plugin file with a defence, loaded for this test."""
    path = tmp_path / "own_methods.py"
    path.write_text(OWN.format(power=1), encoding="utf-8")
    load_plugin(path)
    yield path
    for plugin in plugins.from_files():
        plugins.forget(plugin)


def test_a_changed_plugin_makes_another_cell(grid, own_defence):
    before = {cell.defence: cell.key for cell in grid(defences=["own-defence"]).cells()}
    plugins.forget(plugins.from_files()[0])
    own_defence.write_text(OWN.format(power=1) + "# changed", encoding="utf-8")
    load_plugin(own_defence)
    after = {cell.defence: cell.key for cell in grid(defences=["own-defence"]).cells()}
    assert before["none"] == after["none"]
    assert before["own-defence"] != after["own-defence"]


def test_jobs_order_and_cache_do_not_change_a_result(grid, tmp_path, own_defence):
    parts = {
        "attacks": ["badnets", {"name": "trojan", "steps": 3, "surrogate_epochs": 1}],
        "defences": ["own-defence", *grid().dump()["defences"]],
    }
    alone = run_grid(grid(**parts), tmp_path / "alone")
    backwards = {name: members[::-1] for name, members in parts.items()}
    together = run_grid(grid(**backwards), tmp_path / "together", pool=LocalPool(2))
    assert not alone.failures
    key = lambda record: record["key"]  # noqa: E731
    assert sorted(figures(together.records), key=key) == sorted(figures(alone.records), key=key)
    assert {p.name for p in (tmp_path / "alone" / "shared").iterdir()} == {
        p.name for p in (tmp_path / "together" / "shared").iterdir()
    }


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(grid, tmp_path):
    out = tmp_path / "out"
    made = grid(rates=[0.2, 0.9])
    done = run_grid(made, out)
    assert [record["cell"]["rate"] for record in done.failures] == [0.9, 0.9]
    assert {record["error"]["type"] for record in done.failures} == {"PoisonError"}
    assert len({record["error"]["message"] for record in done.failures}) == 1
    assert (len(done.records), done.ran) == (6, 6)
    assert run_grid(made, out, retry_failed=False).ran == 0
    assert run_grid(made, out).ran == 2


def test_what_is_shared_is_made_once(grid, tmp_path, deaths):
    defences = [{"name": "abl-modified", "isolation_epochs": 1, "unlearn_epochs": 1}, "cbd"]
    run_grid(grid(defences=defences), tmp_path / "out")
    calls = (deaths / "calls").read_text(encoding="utf-8").splitlines()
    assert len(calls) == len(set(calls)) == 6 + 1
    assert [call.split()[0] for call in calls].count("plant") == 1
    assert {call.split()[0] for call in calls[2:]} == {"measure"}
    assert len(list((tmp_path / "out" / "shared").iterdir())) == 2


def test_a_control_that_is_not_a_cell_is_made_and_not_recorded(grid, tmp_path):
    done = run_grid(grid(skip=[{"attack": "none"}]), tmp_path / "out")
    assert [record["cell"]["attack"] for record in done.records] == ["badnets", "badnets"]
    assert all(record["control"]["ca"] is not None for record in done.records)
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2


def test_a_killed_worker_costs_nothing_the_first_time_and_a_cell_the_second(grid, tmp_path, deaths):
    (deaths / "abl-modified").write_text("1", encoding="utf-8")
    (deaths / "cbd").write_text("9", encoding="utf-8")
    made = grid(
        skip=[{"attack": "none", "defence": ["abl-modified", "cbd"]}], defences=[*grid().dump()["defences"], "cbd"]
    )
    done = run_grid(made, tmp_path / "out", pool=LocalPool(2))
    assert not (deaths / "abl-modified").exists()
    assert [record["cell"]["defence"] for record in done.failures] == ["cbd"]
    assert done.failures[0]["error"]["type"] == "WorkerLost"
    assert "memory" in done.failures[0]["error"]["message"]
    assert len(done.records) == len(made.cells()) == done.ran == 4


def test_a_cell_that_ran_out_of_memory_beside_others_is_tried_alone_at_the_end(grid, tmp_path, deaths, monkeypatch):
    monkeypatch.setattr("antibackdoor.benchmark.pools._in_worker", grid_stand_ins.perform_or_starve)
    (deaths / "abl-modified").write_text("", encoding="utf-8")
    made = grid(
        skip=[{"attack": "none", "defence": ["abl-modified", "cbd"]}], defences=[*grid().dump()["defences"], "cbd"]
    )
    done = run_grid(made, tmp_path / "out", pool=LocalPool(2))
    assert (done.failures, done.ran) == ((), len(made.cells()))
    calls = (deaths / "calls").read_text(encoding="utf-8").splitlines()
    [starved] = [cell.title for cell in made.cells() if cell.defence == "abl-modified"]
    assert calls.count(f"begin {starved}") == 2
    assert calls[-2:] == [f"begin {starved}", f"end {starved}"]


def test_a_cell_that_needs_more_memory_than_there_is_fails(grid, tmp_path, deaths, monkeypatch):
    failing = {"status": "failed", "error": {"type": "OutOfMemoryError", "message": "full"}}
    pool, tasks = LocalPool(2), [Task(cell, "measure") for cell in grid().cells()[:2]]
    together = [(tasks[0], failing), (tasks[1], {"error": None})]

    def _together(_: LocalPool, waiting: deque[Task], *__: object) -> list[object]:
        waiting.clear()
        return together

    monkeypatch.setattr(LocalPool, "_together", _together)
    monkeypatch.setattr(LocalPool, "_alone", lambda *_: failing)
    ended = list(pool.run(tasks, None, lambda _: None))
    assert ended == [(tasks[1], {"error": None}), (tasks[0], failing)]


class _Stop:
    """A watcher that presses Ctrl-C after the second cell."""

    def __init__(self) -> None:
        self.ends = 0
        self.closed = 0

    def begin(self, *_: object) -> None:
        pass

    def started(self, _: object) -> None:
        pass

    def ended(self, task: object, record: object) -> None:
        self.ends += record is not None
        if self.ends == 3:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed += 1


def test_an_interrupt_keeps_what_is_done_and_summarises_it(grid, tmp_path, no_summaries):
    watcher = _Stop()
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid(), tmp_path / "out", watcher=watcher)
    assert watcher.closed
    assert len(read_records(tmp_path / "out")) == 2
    assert no_summaries == [(2, tmp_path / "out")]
    assert run_grid(grid(), tmp_path / "out").ran == 2


# A job that was started in the background is born deaf to Ctrl-C, and so are its children.
RUN = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from antibackdoor.cli import main
import antibackdoor.benchmark.bench as bench
bench.write_summaries = lambda records, out: []
sys.argv = ["antibackdoor", "bench", *sys.argv[1:]]
if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGINT, id="ctrl-c"), pytest.param(signal.SIGKILL, id="kill", marks=pytest.mark.slow)],
)
def test_a_stopped_process_loses_only_the_cells_in_flight(how, values, grid, tmp_path):
    script, config, out = tmp_path / "run.py", tmp_path / "grid.yaml", tmp_path / "out"
    script.write_text(RUN, encoding="utf-8")
    many = {"seeds": list(range(4)), "train": {"epochs": 3, "batch_size": 16}}
    config.write_text(yaml.safe_dump(values(**many)), encoding="utf-8")
    command = [sys.executable, str(script), str(config), "--out", str(out), "--jobs", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            deadline = time.monotonic() + 120
            while len(list(out.glob("cells/*.json"))) < 3:
                assert time.monotonic() < deadline, "no cell was finished"
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            # Ctrl-C reaches the workers too; a kill reaches the first process alone.
            (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
            _, err = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.strip().splitlines()[-1].startswith("antibackdoor: interrupted")
        assert "Traceback" not in err
    cells = grid(**many).cells()
    written = [json.loads(path.read_text(encoding="utf-8")) for path in out.glob("cells/*.json")]
    assert 3 <= len(written) < len(cells)
    assert all(record["status"] == "done" for record in written)
    before = times_written(out)
    rest = run_grid(grid(**many), out)
    assert rest.ran == len(cells) - len(written)
    assert not rest.failures
    assert {name: times_written(out)[name] for name in before} == before


def test_the_pool_of_this_machine():
    assert local_pool("cpu") == LocalPool(cpu_count(), 1)
    assert local_pool("cpu", threads=1000) == LocalPool(1, 1000)
    assert local_pool("cpu", jobs=3) == LocalPool(3, 1)
    assert local_pool("cuda:0").jobs == 4
    for wrong in ({"jobs": 0}, {"threads": -1}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            local_pool("cpu", **wrong)


def test_tasks_go_to_the_card_that_is_least_busy(grid):
    pool = LocalPool(4, cards=("cuda:0", "cuda:1"))
    running: list[Task] = []
    for _ in range(4):
        running.append(pool._on_a_card(Task(grid().cells()[0], "measure"), running))
    assert [task.device for task in running] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    del running[1]
    assert pool._on_a_card(Task(grid().cells()[0], "measure"), running).device == "cuda:1"
