"""``--dry-run`` and the time that a long run says as it begins."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import torch
from end_to_end import invoke, write_folder, write_npz

from antibackdoor import estimating, pipeline
from antibackdoor.config import DataConfig, RunConfig
from antibackdoor.data.sources import Loaded, from_arrays
from antibackdoor.defences import DEFENCES
from antibackdoor.estimating import LOOK, Duration, Pace, before_long, duration_of, in_words, look_into
from antibackdoor.models import builder_from
from antibackdoor.progress import SILENT, Silent
from antibackdoor.training import Runtime, TrainPlan


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def few():
    """60 grey images of 8x8 in two classes."""
    values = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    return from_arrays(values, np.arange(60) % 2)


def test_the_command(tmp_path: Path, cache: Path) -> None:
    folder = write_folder(tmp_path / "d")
    for command, training in (("train", "with poison"), ("scan", "training: about")):
        done = invoke(command, folder, "--out", tmp_path / "run", "--dry-run", "--set", "train.batch_size=16")
        assert (done.code, done.err) == (0, "")
        assert "images: 60 to train on, 0 to measure on" in done.out
        assert "classes: 3, of 20 (cat) to 20 (cat) images" in done.out
        assert training in done.out
        assert not (tmp_path / "run").exists()
        assert not cache.exists()


def test_what_the_run_would_refuse(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (folder / "cat" / "000.png").write_bytes(b"no image")
    for given, message in (
        ((folder, "--out", tmp_path / "run"), "holds another run"),
        ((folder, "--out", tmp_path / "r"), "cat/000.png"),
        ((folder, "--out", tmp_path / "r", "--skip-bad", "--model", "wrn"), "unknown model"),
        ((tmp_path / "none", "--out", tmp_path / "r"), "no such folder"),
    ):
        done = invoke("train", *given, "--dry-run")
        assert done.code == 2
        assert message in done.err


def test_sources(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "d")
    held = look_into(DataConfig(source=str(folder), test=str(folder), limit=30, image_size=16), SILENT)
    assert (held.images, held.test_images, held.sample.shape) == (30, 60, (3, 16, 16))
    assert set(held.sizes.values()) == {20}
    file = write_npz(tmp_path / "d.npz")
    of_arrays = look_into(DataConfig(source=str(file), test=str(file)), SILENT)
    assert of_arrays.images == of_arrays.test_images == sum(of_arrays.sizes.values())


def test_a_sample_is_spread_over_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimating, "SAMPLE", 7)
    held = look_into(DataConfig(source=str(write_folder(tmp_path / "d"))), SILENT)
    assert len(held.sample) == 7
    assert held.sample.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert held.images == 60


EVEN = Pace(0.5, 0.5, 0.5)


def timed(data, monkeypatch, *, defence="witnesses", scan_only=False, pace=EVEN):
    """What would be said if every image took half a second in each epoch; and which networks were timed."""
    built = []

    def measure(sample, build_model, plan, runtime):
        built.append(sum(value.numel() for value in build_model(torch.Generator()).parameters()))
        return pace

    monkeypatch.setattr(estimating, "_pace", measure)
    found = duration_of(
        data,
        100,
        build_model=builder_from("wrn-10-1", data)[0],
        plan=TrainPlan(epochs=20),
        defence=DEFENCES.build(defence, {}),
        runtime=Runtime.create("cpu"),
        scan_only=scan_only,
    )
    return found, len(built)


def test_how_many_trainings_there_are(few, monkeypatch):
    once = 100 * 20 * 0.5
    found, networks = timed(few, monkeypatch)
    least, _, longest = (times * 100 * 20 * 0.5 for times in LOOK)
    assert (found.least, found.usual, networks) == (least + once, longest + once, 2)
    assert (found.most, found.slower) == (longest + 2 * once, 1)
    found, networks = timed(few, monkeypatch, scan_only=True)
    assert (found.least, found.usual, found.most, networks) == (least, longest, longest, 1)
    found, networks = timed(few, monkeypatch, defence="none")
    assert (found.least, found.usual, found.most, networks) == (once, once, once, 1)
    found, networks = timed(few, monkeypatch, defence="d-br")
    assert (found.least, found.usual, found.most) == (once, once, None)
    assert found.memory > 10**7


@pytest.mark.parametrize("defence", ["witnesses", "none", "d-br"])
@pytest.mark.parametrize("scan_only", [False, True])
def test_the_pace_of_now_is_told_apart(few, monkeypatch, defence, scan_only):
    free, _ = timed(few, monkeypatch, defence=defence, scan_only=scan_only)
    found, _ = timed(few, monkeypatch, defence=defence, scan_only=scan_only, pace=Pace(0.25, 0.5, 5.0))
    assert (found.usual, found.most, found.least) == (free.usual, free.most, free.least / 2)
    assert found.slower == pytest.approx(10)


def test_the_look_takes_what_the_records_show():
    ratios, whole = [], []
    for file in sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("defences_*_cpu.json")):
        cells = json.loads(file.read_text())["cells"]
        undefended = {cell["row"]: cell for cell in cells if cell["defence"] == "none"}
        for cell in cells:
            alone = undefended[cell["row"]]
            disturbed = cell["seconds"] > cell["cpu_seconds"] or alone["phases"]["poison"] > 1
            if cell["defence"] != "witnesses" or disturbed:
                continue
            epochs = [seconds for phase, seconds in cell["phases"].items() if phase.startswith("detector ")]
            look = cell["cpu_seconds"] - (cell["trainings"] - 1) * alone["cpu_seconds"]
            ratios.append(look / (len(epochs) * min(epochs)))
            whole.append(cell["cost"])
    assert len(ratios) >= 5
    assert tuple(round(value, 1) for value in (min(ratios), median(ratios), max(ratios))) == LOOK
    assert (round(min(whole), 1), round(max(whole), 1)) == (1.8, 2.1)


def clocks(monkeypatch, of_threads):
    """Let the updates take what is given for a number of threads, by the clock and of the processor."""
    asked = []

    def timing(sample, build_model, plan, runtime):
        asked.append(torch.get_num_threads())
        return of_threads[torch.get_num_threads()]

    monkeypatch.setattr(estimating, "_timed", timing)
    return asked


@pytest.mark.parametrize(
    ("threads", "of_threads", "expected", "asked"),
    [
        # Nothing else is done: the clock counts, and nothing is timed twice.
        (1, {1: ([3.0, 2.0, 4.0], [3.0, 2.0, 3.9])}, Pace(2.0, 3.0, 3.0), [1]),
        (2, {2: ([3.0, 2.0, 4.0], [6.0, 4.0, 7.0])}, Pace(2.0, 3.0, 3.0), [2]),
        # Others hold it up: the processor's time of one thread, unless the clock says less all the same.
        (1, {1: ([30.0, 20.0, 40.0], [3.0, 2.0, 4.0])}, Pace(2.0, 3.0, 30.0), [1]),
        (2, {2: ([30.0, 20.0, 40.0], [30.0, 20.0, 40.0]), 1: ([9.0], [2.5, 2.0])}, Pace(2.0, 2.25, 30.0), [2, 1]),
        (2, {2: ([3.0, 2.0, 4.0], [3.0, 2.0, 4.0]), 1: ([9.0], [5.0])}, Pace(2.0, 3.0, 3.0), [2, 1]),
    ],
)
def test_other_work_does_not_make_the_estimate_longer(few, monkeypatch, threads, of_threads, expected, asked):
    before = torch.get_num_threads()
    seen = clocks(monkeypatch, of_threads)
    try:
        torch.set_num_threads(threads)
        build = builder_from("wrn-10-1", few)[0]
        assert estimating._pace(few, build, TrainPlan(), Runtime.create("cpu")) == expected
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert seen == asked


def test_what_is_slow_is_timed_once(few, monkeypatch):
    build, plan, runtime = builder_from("wrn-10-1", few)[0], TrainPlan(batch_size=16, epochs=3), Runtime.create("cpu")
    clock, processor = estimating._timed(few, build, plan, runtime)
    assert len(clock) == len(processor) == estimating.REPEATS
    assert all(value > 0 for value in (*clock, *processor))
    monkeypatch.setattr(estimating, "PATIENCE", 0.0)
    assert [len(times) for times in estimating._timed(few, build, plan, runtime)] == [1, 1]


def test_a_training_that_diverges_at_once_is_timed(few):
    plan = TrainPlan(batch_size=16, epochs=3, lr=1e30)
    clock, processor = estimating._timed(few, builder_from("wrn-10-1", few)[0], plan, Runtime.create("cpu"))
    assert len(clock) == len(processor) == 1
    assert clock[0] > 0


def test_it_is_measured(few):
    found = duration_of(
        few,
        1000,
        build_model=builder_from("wrn-10-1", few)[0],
        plan=TrainPlan(epochs=3, batch_size=16),
        defence=DEFENCES.build("none", {}),
        runtime=Runtime.create("cpu"),
        scan_only=False,
    )
    assert 1e-3 < found.least < 3600


def test_words():
    assert [in_words(s) for s in (0, 40, 300, 5399, 9000)] == ["1 s", "40 s", "5 min", "90 min", "2.5 h"]
    assert Duration(60, 60, 60, 2**30).lines() == [
        "training: about 60 s",
        "memory: about 1.0 GiB, and the images as far as there is room",
    ]
    assert Duration(60, 80, 600, 0).training() == "training: about 60 to 80 s on clean images, up to 10 min with poison"
    assert Duration(60, 120, 600, 0).training().startswith("training: about 60 s to 2 min on clean images, up to 10")
    assert Duration(60, 60, None, 0).training() == "training: about 60 s for each training that the defence makes"
    assert Duration(60, 60, 60, 0, 1.4).training() == "training: about 60 s"
    busy = "training: about 60 s; 20 times as long while the machine is as busy as now"
    assert Duration(60, 60, 60, 0, 20.2).training() == busy


class Told(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_only_a_long_run_says_it(few, monkeypatch):
    arguments = {
        "build_model": builder_from("wrn-10-1", few)[0],
        "plan": TrainPlan(epochs=2, batch_size=16),
        "defence": DEFENCES.build("none", {}),
        "runtime": Runtime.create("cpu"),
        "scan_only": False,
    }
    assert before_long(few, **arguments) is None
    monkeypatch.setattr(estimating, "LONG", 60)
    assert re.match(r"training: about \d+ (s|min|h|to)", before_long(few, **arguments) or "")


def test_saying_it_changes_nothing(few, monkeypatch):
    config = RunConfig.parse({"defence": "none", "model": "wrn-10-1", "train": {"epochs": 2}, "device": "cpu"})
    before = pipeline.run(config, data=Loaded(few, few), progress=Told())
    monkeypatch.setattr(estimating, "LONG", 1)
    told = Told()
    after = pipeline.run(config, data=Loaded(few, few), progress=told)
    assert any(line.startswith("training: about") for line in told.lines)
    assert torch.equal(before.isolation.scores, after.isolation.scores)
    assert before.model is not None
    assert after.model is not None
    for one, other in zip(before.model.parameters(), after.model.parameters(), strict=True):
        assert torch.equal(one, other)
