"""Attack and summary stand-ins that worker processes can import by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from antibackdoor.benchmark import measure
from antibackdoor.benchmark.folder import Record
from antibackdoor.benchmark.measure import Task
from antibackdoor.benchmark.shared import ArtifactStore

MARK = "DIE_ON"  # environment: a folder; a worker kills itself once for every file there that is named after its cell


def perform_or_starve(task: Task, store: ArtifactStore, *_: object) -> Record | None:
    """As ``perform``, but out of memory once for every file named after a cell's defence; notes begins and ends."""
    folder = Path(os.environ[MARK])
    with (folder / "calls").open("a", encoding="utf-8") as calls:
        calls.write(f"begin {task.cell.title}\n")
    try:
        wish = folder / task.cell.defence_label
        if task.kind == "measure" and wish.exists():
            wish.unlink()
            return measure.failed(task.cell, "OutOfMemoryError", "CUDA out of memory")
        return measure.perform(task, store)
    finally:
        with (folder / "calls").open("a", encoding="utf-8") as calls:
            calls.write(f"end {task.cell.title}\n")


def perform_or_die(task: Task, store: ArtifactStore, *_: object) -> Record | None:
    """As ``perform``, but kill this process where a file of the cell's defence says so, and count the calls."""
    folder = Path(os.environ[MARK])
    with (folder / "calls").open("a", encoding="utf-8") as calls:
        calls.write(f"{task.kind} {task.cell.title}\n")
    wish = folder / task.cell.defence_label
    if task.kind == "measure" and wish.exists():
        left = int(wish.read_text(encoding="utf-8")) - 1
        if left:
            wish.write_text(str(left), encoding="utf-8")
        else:
            wish.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return measure.perform(task, store)
