"""The work of one cell: what its record says, and that it says the same however it came about."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from antibackdoor.benchmark import measure
from antibackdoor.benchmark.folder import FileStore
from antibackdoor.benchmark.measure import Task, curves_of, failed, forget_data, perform
from antibackdoor.config import RunConfig
from antibackdoor.errors import TrainingError
from antibackdoor.evaluation import evaluate
from antibackdoor.models import builder_from
from antibackdoor.pipeline import load_data, plant, run
from antibackdoor.progress import SILENT
from antibackdoor.seeds import Seeds
from antibackdoor.training import Runtime
from antibackdoor.types import ImageSet, Metrics, PoisonedSet

FIELDS = {
    *("format", "key", "cell", "config", "status", "error", "metrics", "control", "verdict", "evidence", "seconds"),
    *("train_seconds", "updates", "versions", "device", "curves", "data"),
}


@pytest.fixture(autouse=True)
def _fresh():
    """No images of an earlier test, and as many threads in this process as a task has."""
    forget_data()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "shared")


def truth_of(poison, cover):
    count = len(poison)
    data = ImageSet(
        torch.zeros((count, 1, 8, 8), dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
        ("a", "b"),
        tuple(map(str, range(count))),
    )
    return PoisonedSet(data, torch.tensor(poison), torch.tensor(cover), data.labels, 0)


def test_curves_against_a_count_by_hand():
    nan = float("nan")
    truth = truth_of([True, True, False, False, False], [False, False, False, False, True])
    losses = np.array([[0.1, 0.5, 0.4, 0.8, 0.0], [0.1, 0.2, nan, 0.3, 9.0], [nan] * 5], dtype=np.float32)
    curves = curves_of(losses, truth, shares=(0.25, 0.5, 1.0))
    assert curves["loss_poison"] == pytest.approx([0.3, 0.15, None])
    assert curves["loss_clean"] == pytest.approx([0.6, 0.3, None])
    # Of 4 images that count, then of 3: covers never, left-out ones not then.
    assert curves["precision"] == {
        "0.25": [1.0, 1.0, None],
        "0.5": [0.5, 1.0, None],
        "1": [0.5, pytest.approx(2 / 3), None],
    }


def test_the_record_of_a_cell_is_that_of_the_run(grid, store):
    cells = {(cell.attack, cell.defence): cell for cell in grid().cells()}
    control = perform(Task(cells["none", "none"], "measure"), store)
    attacked = perform(Task(cells["badnets", "abl-modified"], "measure"), store)
    clean = perform(Task(cells["none", "abl-modified"], "measure"), store)
    for record in (control, attacked, clean):
        assert record.keys() == FIELDS
        assert record["status"] == "done", record["error"]
        assert record["metrics"].keys() == {field.name for field in dataclasses.fields(Metrics)}
    plain = run(cells["badnets", "abl-modified"].config)
    assert attacked["metrics"] == dataclasses.asdict(plain.record.metrics)
    assert attacked["evidence"] == list(plain.record.evidence)
    assert attacked["config"]["defence"] == plain.record.config["defence"]
    assert attacked["config"]["attack"] == plain.record.config["attack"]
    assert attacked["train_seconds"] == pytest.approx(
        sum(attacked["seconds"][h.phase] for h in plain.outcome.histories), abs=0.01
    )
    assert attacked["updates"] == sum(history.updates for history in plain.outcome.histories) > 0
    curves = attacked["curves"]
    assert (curves["phase"], len(curves["loss_clean"])) == ("isolate", 1)
    assert curves["loss_poison"][0] == pytest.approx(
        plain.outcome.histories[0].losses[0][plain.truth.poison.numpy()].mean(), abs=1e-5
    )
    assert clean["curves"] is None
    assert control["control"] == {"ca": control["metrics"]["ca"], "asr": None, "ra": None}
    assert clean["control"] == control["control"]


def test_the_control_is_measured_on_the_triggered_images_of_the_cell(grid, store):
    cell = next(c for c in grid().cells() if (c.attack, c.defence) == ("badnets", "none"))
    record = perform(Task(cell, "measure"), store)
    clean, attacked = run(cell.control.config), run(cell.config)
    loaded = load_data(cell.config.data, SILENT)
    build, _ = builder_from(cell.config.model, loaded.train)
    runtime = Runtime.create("cpu")
    triggered = plant(cell.config.attack, loaded, build, runtime, Seeds(cell.seed)).triggered
    expected = evaluate(clean.model, runtime, test=loaded.test, triggered=triggered)
    assert record["control"] == {"ca": expected.ca, "asr": expected.asr, "ra": expected.ra}
    assert record["metrics"] == dataclasses.asdict(attacked.record.metrics)


def test_it_does_not_matter_what_was_shared(grid, store, tmp_path):
    cell = next(c for c in grid().cells() if (c.attack, c.defence) == ("badnets", "abl-modified"))
    figures = ("metrics", "control", "verdict", "evidence", "curves", "config")

    def measured():
        forget_data()
        record = perform(Task(cell, "measure"), store)
        return {name: record[name] for name in figures}

    alone = measured()
    assert {path.name for path in store.folder.iterdir()} == {cell.shared_poison, cell.shared_control}
    made = {path: path.read_bytes() for path in store.folder.iterdir()}
    assert measured() == alone
    for path, content in made.items():
        path.write_bytes(content[: len(content) // 2])
    assert measured() == alone
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == made
    store.put(cell.shared_poison, b"nonsense")
    assert perform(Task(cell, "plant"), store) is None
    assert store.get(cell.shared_poison) == made[store.folder / cell.shared_poison]


def test_a_shared_set_is_used_and_not_made_again(grid, store, monkeypatch):
    cell = next(c for c in grid().cells() if (c.attack, c.defence) == ("badnets", "none"))
    perform(Task(cell, "plant"), store)

    def nothing_new(config: object, *_: object, **__: object) -> None:
        assert config is None, "planted again"

    monkeypatch.setattr("antibackdoor.benchmark.measure.plant", nothing_new)
    monkeypatch.setattr("antibackdoor.run_setup.plant", nothing_new)
    record = perform(Task(cell, "measure"), store)
    assert record["status"] == "done", record["error"]


def test_a_cell_that_cannot_be_measured_says_why(grid, pets, store):
    too_many = next(c for c in grid(rates=[0.9]).cells() if c.attack == "badnets")
    record = perform(Task(too_many, "measure"), store)
    assert record["status"] == "failed"
    assert record["error"]["type"] == "PoisonError"
    assert "0.9" in record["error"]["message"]
    assert record.keys() == FIELDS
    assert record["metrics"] is None
    untested = grid(data=[{"name": "pets", "source": pets["source"]}]).cells()[0]
    assert "no test images" in perform(Task(untested, "measure"), store)["error"]["message"]
    assert failed(too_many, "X", "two\n lines")["error"] == {"type": "X", "message": "two lines", "where": []}
    assert failed(too_many, "X", "", ("a.py:1 f",))["error"]["where"] == ["a.py:1 f"]


def test_a_failure_says_where_without_a_folder_of_this_machine(grid, store, tmp_path, monkeypatch):
    plugin = tmp_path / "own_methods.py"
    plugin.write_text("def look(name):\n    return {}[name]\n", encoding="utf-8")
    parts: dict[str, object] = {}
    exec(compile(plugin.read_text(encoding="utf-8"), str(plugin), "exec"), parts)
    monkeypatch.setattr(measure, "run", lambda *_, **__: parts["look"]("gone"))
    error = perform(Task(grid().cells()[0], "measure"), store)["error"]
    assert (error["type"], error["message"]) == ("KeyError", "'gone'")
    ours, here, last = error["where"]
    assert re.fullmatch(r"benchmark/measure\.py:\d+ _measure", ours)
    assert re.fullmatch(r"test_grid_measure\.py:\d+ <lambda>", here)
    assert last == "own_methods.py:2 look"


def test_a_control_that_cannot_be_made_costs_no_training_of_the_cell(grid, store, monkeypatch):
    cell = next(c for c in grid().cells() if (c.attack, c.defence) == ("badnets", "abl-modified"))
    tried = []

    def no_training(config: RunConfig, **_: object) -> None:
        tried.append(config)
        raise TrainingError("no luck")

    monkeypatch.setattr(measure, "run", no_training)
    assert perform(Task(cell, "measure"), store)["error"]["message"] == "no luck"
    assert tried == [cell.control.config]


def test_a_task_computes_with_its_threads_and_on_its_device(grid, store):
    cell = grid().cells()[0]
    record = perform(Task(cell, "measure", threads=2), store)
    assert record["device"]["threads"] == 2
    assert torch.get_num_threads() == 1
    other = perform(Task(cell, "measure", device="cuda:99"), store)
    assert other["error"]["type"] == "DeviceError"
    assert other["key"] == record["key"]
