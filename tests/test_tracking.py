"""What trackers are told of a run, in folders on this machine."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from end_to_end import FAST, invoke, write_folder

from antibackdoor import tracking
from antibackdoor.errors import ConfigError, UnknownNameError
from antibackdoor.tracking import Tracking, check_trackers
from antibackdoor.types import Metrics

SETTINGS = {"train": {"epochs": 2, "augment": ["crop"]}, "model": "wrn-10-1", "data": {"test": None}}


class Says:
    """Notes what is said; no bars."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def tell(names: list[str], out: Path) -> None:
    tracking = Tracking(names, out, SETTINGS)
    tracking.epoch("round 2: look", 1, 0.5, 0.75)
    tracking.epoch("round 2: look", 2, 0.25, 1.0)
    tracking.finish(Metrics(ca=0.5, n_test=3))
    tracking.epoch("late", 1, 0.5, 0.75)  # closed: nobody is told


def test_names_are_checked_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers([], None)
    with pytest.raises(UnknownNameError, match="Did you mean 'tensorboard'"):
        check_trackers(["tensorbord"], tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="folder"):
        check_trackers(["wandb"], None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"'antibackdoor\[mlflow\]'"):
        check_trackers(["mlflow"], tmp_path)
    done = invoke("train", tmp_path / "nowhere", "--out", tmp_path / "run", "--track", "tensorbord")
    assert (done.code, len(done.err.splitlines())) == (2, 1), done
    assert "tensorbord" in done.err


def test_tensorboard_has_every_epoch_of_a_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    done = invoke("train", write_folder(tmp_path / "set", 10), "--out", run, *FAST, "--track", "tensorboard", "--quiet")
    assert done.code == 0, done
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    tags = events.Tags()["scalars"]
    assert {"isolate/loss", "isolate/accuracy", "result/holdout_accuracy"} <= set(tags)
    [loss] = events.Scalars("isolate/loss")
    assert loss.step == 1
    assert loss.value > 0
    assert any("defence.name: abl-modified" in path.read_text() for path in run.rglob("hparams.yml"))


def test_mlflow_has_settings_epochs_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tell(["mlflow"], tmp_path / "run")
        client = mlflow.tracking.MlflowClient()
        [run] = client.search_runs([client.get_experiment_by_name("antibackdoor").experiment_id])
    assert run.data.params["train.epochs"] == "2"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["result/ca"] == 0.5
    found = client.get_metric_history(run.info.run_id, "round 2_ look/loss")
    assert [(one.step, one.value) for one in found] == [(1, 0.5), (2, 0.25)]
    assert not any(name.startswith("late") for name in run.data.metrics)


def test_a_tracker_that_fails_does_not_cost_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []

    def log(values: object, step: int) -> None:
        told.append(values)
        raise OSError("the server is gone")

    fails = SimpleNamespace(store_init_configuration=told.append, log=log, finish=lambda: told.append("closed"))
    monkeypatch.setattr(tracking, "_started", lambda name, out: fails)
    says = Says()
    made = Tracking(["wandb"], tmp_path, SETTINGS, progress=says)  # type: ignore[arg-type]
    made.epoch("a", 1, 1.0, 0.5)
    made.epoch("a", 2, 1.0, 0.5)
    made.finish(Metrics())
    assert told == [
        {"train.epochs": 2, "train.augment": '["crop"]', "model": "wrn-10-1", "data.test": "null"},
        {"a/loss": 1.0, "a/accuracy": 0.5},
    ]
    assert says.lines == ["track: wandb is left out from now on: the server is gone"]


def test_a_tracker_that_cannot_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, out: Path) -> None:
        raise ValueError("no\nlogin")

    monkeypatch.setattr(tracking, "_started", refuse)
    with pytest.raises(ConfigError, match="track: wandb cannot be started: no login"):
        Tracking(["wandb"], tmp_path, SETTINGS)
