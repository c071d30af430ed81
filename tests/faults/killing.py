"""Kill a command at any write or at any moment, call it again, and compare with a run that nobody killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from end_to_end import FAST, invoke, write_folder, write_poisoned_npz

from antibackdoor.decisions import read_decisions

HERE = Path(__file__).parent


class Mortal:
    """Runs the command in forks of one process that has imported everything; see ``dying``."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def __call__(self, *args: object, **how: object) -> dict[str, Any]:
        job = {"args": [str(arg) for arg in args], "log": str(self._log), **how}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return json.loads(line) | {"said": self._log.read_text(errors="replace")}


@contextmanager
def mortal(folder: Path) -> Iterator[Mortal]:
    """Start the process that forks; its cache lies in ``folder``."""
    environment = {**os.environ, "ANTIBACKDOOR_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, str(HERE / "dying.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield Mortal(process, folder / "log.txt")
        finally:
            process.kill()


@dataclass
class Command:
    """One command to be killed.

    Attributes:
        name: Of the row.
        first: Arguments, given the folder to write to.
        again: Arguments of the second call, after a kill.
        content: What is to be the same as without a kill, from that folder; times left out.
        retried: Arguments to try where ``again`` is refused, such as with --overwrite; None where it must not be.
        broken: What a killed call had promised and did not keep, from that folder and what it said; empty if nothing.
    """

    name: str
    first: Callable[[Path], list[str]]
    again: Callable[[Path], list[str]]
    content: Callable[[Path], dict[str, Any]]
    retried: Callable[[Path], list[str]] | None = None
    broken: Callable[[Path, str], str] | None = None
    kills: int = 0
    survived: int = 0
    faults: list[str] = field(default_factory=list)


def content_of_run(run: Path) -> dict[str, Any]:
    """What a run holds but for times."""
    record = json.loads((run / "run.json").read_text())
    record.pop("seconds")
    with np.load(run / "history.npz", allow_pickle=False) as arrays:
        history = {name: arrays[name].tobytes() for name in arrays.files if name != "seconds"}
    names = ("model.safetensors", "suspects.csv", "gallery.npz", "config.json")
    files = {name: (run / name).read_bytes() for name in names if (run / name).exists()}
    everything = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {"record": record, "history": history, "names": everything, **files}


def content_of_files(folder: Path) -> dict[str, Any]:
    """Every file that a folder holds, but for what a kill left half-written under a name of its own."""
    whole = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(folder)): path.read_bytes() for path in whole}


def content_of_grid(out: Path) -> dict[str, Any]:
    """The records of a grid but for times and checksums (which cover times)."""
    records = {}
    for path in sorted((out / "cells").glob("*.json")):
        record = json.loads(path.read_text())
        records[path.name] = {
            key: record[key] for key in ("key", "cell", "config", "status", "metrics") if key in record
        }
    return records


def content_of_decisions(run: Path) -> dict[str, Any]:
    """What was decided about each image of a run, and which files lie beside it."""
    made = {one.id: (one.decision, one.label, one.who) for one in read_decisions(run / "decisions.csv")}
    return {"decisions": made, "names": sorted(path.name for path in run.iterdir())}


def unsaved(run: Path, said: str) -> str:
    """Name a decision that was said to be saved and is not in the file."""
    path = run / "decisions.csv"
    made = {one.id: one for one in read_decisions(path)} if path.exists() else {}
    told = [json.loads(line.removeprefix("saved ")) for line in said.splitlines() if line.startswith("saved ")]
    *earlier, _ = told or [None]  # The last may just be taken back.
    for name, decision, label in earlier:
        if name not in made or (made[name].decision, made[name].label) != (decision, label):
            return f"the decision about {name} was said to be saved and is not"
    return ""


def kill(run: Mortal, command: Command, folder: Path, expected: dict[str, Any], **how: object) -> bool:
    """Kill the command once, call it again, and note what came of it; False where it ended before the kill."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    done = run(*command.first(out), **how)
    if not done["killed"]:
        return False
    command.kills += 1
    broken = command.broken(out, done["said"]) if command.broken else ""
    if fault := broken or call_again(run, command, out, expected):
        command.faults.append(f"{command.name}, killed {how}: {fault}")
    else:
        command.survived += 1
    return True


def call_again(run: Mortal, command: Command, out: Path, expected: dict[str, Any]) -> str:
    """Call a command again that was stopped, and say what is wrong with what it leaves; nothing if nothing is."""
    again = run(*command.again(out))
    if again["code"] != 0 and command.retried is not None:
        again = run(*command.retried(out))
    if again["code"] != 0:
        return f"the second call exits with {again['code']}: {again['said'].strip()[-300:]}"
    if (found := command.content(out)) != expected:
        return f"other content in {[key for key in {*found, *expected} if found.get(key) != expected.get(key)]}"
    return ""


def whole(run: Mortal, command: Command, folder: Path) -> tuple[dict[str, Any], int, float]:
    """Run the command undisturbed: what it leaves, how many writes it makes, and how long it takes."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    done = run(*command.first(out))
    assert done["code"] == 0, done
    return command.content(out), done["events"], done["seconds"]


def torture(
    run: Mortal,
    command: Command,
    folder: Path,
    *,
    writes: int | None,
    moments: int,
    seed: int = 0,
    twice: bool = True,
) -> int:
    """Kill the command at its writes and at random moments.

    Args:
        run: Runs it.
        command: What to kill; the figures are added to it.
        folder: For its files.
        writes: At how many of the writes, evenly spread; None for all, each of them also torn.
        moments: At how many random moments.
        seed: Of these moments.
        twice: Measure the second of two undisturbed calls: the first makes what later ones find, such as imports.

    Returns:
        How many writes the command makes.
    """
    if twice:
        whole(run, command, folder)
    expected, events, seconds = whole(run, command, folder)
    places = range(1, events + 1)
    if writes is not None:
        places = sorted({1 + (events - 1) * (2 * k + 1) // (2 * writes) for k in range(writes)})
    for at in places:
        # What is opened and never forced out cannot be torn.
        if not kill(run, command, folder, expected, at=at, torn=True):
            kill(run, command, folder, expected, at=at, torn=False)
    chance = random.Random(seed)
    for _ in range(moments):
        kill(run, command, folder, expected, after=chance.uniform(0, seconds))
    return events


def commands(folder: Path) -> dict[str, Command]:
    """Every command that writes, on the tiny data that :func:`write_inputs` has put there."""
    data, grid, images, done = (folder / name for name in ("bad.npz", "grid.yaml", "images", "done"))
    fast = ["--device", "cpu", "--model", "wrn-10-1", "--quiet", "--set", "train.batch_size=16"]
    methods = {
        "train (abl-modified)": [
            *("train", "--defence", "abl-modified", "--epochs", "2", "--set", "defence.isolation_epochs=2"),
            *("--set", "defence.unlearn_epochs=2", "--set", "defence.share=0.1"),
        ],
        "train (default)": ["train", "--epochs", "6"],
        "train (d-br)": ["train", "--defence", "d-br", "--epochs", "2"],
        "scan": ["scan", "--epochs", "6"],
    }

    def a_run(name: str, options: list[str]) -> Command:
        def first(out: Path) -> list[str]:
            return [options[0], str(data), "--out", str(out), *options[1:], *fast]

        return Command(name, first, lambda out: [*first(out), "--resume"], content_of_run)

    def poison(out: Path) -> list[str]:
        plain = ["--attack", "badnets", "--rate", "0.1", "--target", "0", "--device", "cpu", "--quiet"]
        return ["poison", str(images), "--out", str(out), *plain]

    def bench(out: Path) -> list[str]:
        return ["bench", str(grid), "--out", str(out), "--jobs", "1", "--quiet"]

    def export(out: Path) -> list[str]:
        return ["export", str(done), str(out), "--copy", "--quiet"]

    def listed(out: Path) -> list[str]:
        return ["export", str(done), str(out / "list.json"), "--to", "json", "--overwrite", "--quiet"]

    def predict(out: Path) -> list[str]:
        return ["predict", str(done), str(images), "--out", str(out / "predictions.csv"), "--device", "cpu", "--quiet"]

    def compare(out: Path) -> list[str]:
        return ["compare", str(done), str(done), "--out", str(out / "changes.csv")]

    def beside(*args: str) -> Callable[[Path], list[str]]:
        """Arguments of a command that writes into a run, which is copied there if it is not."""
        return lambda out: [args[0], str(out if out.exists() else shutil.copytree(done, out)), *args[1:]]

    def of_files(name: str, make: Callable[[Path], list[str]], *more: str) -> Command:
        return Command(name, make, make, content_of_files, (lambda out: [*make(out), *more]) if more else None)

    found = {name: a_run(name, options) for name, options in methods.items()}
    found["poison"] = of_files("poison", poison, "--overwrite")
    found["bench"] = Command("bench", bench, bench, content_of_grid)
    found["export"] = of_files("export", export, "--overwrite")
    found["export (list)"] = of_files("export (list)", listed)
    found["predict"] = of_files("predict", predict)
    found["compare"] = of_files("compare", compare)
    found["report"] = of_files("report", beside("report"))
    found["review"] = Command("review", beside("decide"), beside("decide"), content_of_decisions, broken=unsaved)
    return found


GRID = """
data:
  - {{name: tiny, source: {data}}}
attacks: [badnets]
rates: [0.1]
defences: [none]
models: [wrn-10-1]
seeds: [0, 1]
train: {{epochs: 1, batch_size: 16, augment: []}}
device: cpu
"""


def write_inputs(folder: Path) -> dict[str, Command]:
    """Write the tiny data and a finished run, and return the commands on them."""
    images = folder / "images"
    for split, seed in (("train", 0), ("test", 1)):
        write_folder(images / split, 5, seed=seed)
    (folder / "grid.yaml").write_text(GRID.format(data=images))
    write_poisoned_npz(folder / "bad.npz", per_class=20, poisoned=6)
    done = invoke("train", images, "--out", folder / "done", *FAST, "--quiet")
    assert done.code == 0, done
    return commands(folder)
