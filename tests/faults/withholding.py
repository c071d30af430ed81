"""Refuse what a command asks of the system, then give it, and compare with a run that was refused nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from killing import Command, Mortal, call_again, whole

ERRORS = ("ENOSPC", "EACCES", "EROFS", "EMFILE", "EDQUOT", "EIO")


@dataclass
class Row:
    """What came of one command.

    Attributes:
        refused: How often something was refused.
        ended: How often the command then ended with one line and exit code 1 or 2.
        went_on: How often it could do without, and left the same.
        restored: How often a second call, refused nothing, left the same as one that never was.
        faults: What broke the promise.
    """

    name: str
    refused: int = 0
    ended: int = 0
    went_on: int = 0
    restored: int = 0
    faults: list[str] = field(default_factory=list)


def judge(run: Mortal, command: Command, out: Path, expected: dict[str, Any], done: dict[str, Any], row: Row) -> None:
    """Note what came of a call that was refused something, and call the command again."""
    row.refused += 1
    fault = ""
    errors = [line for line in done["said"].splitlines() if line.startswith("antibackdoor: ")]
    if done["code"] == 0:
        row.went_on += 1
        if command.content(out) != expected:
            fault = "exit code 0, but other content"
    elif done["code"] not in (1, 2):
        fault = f"exit code {done['code']}: {done['said'].strip()[-300:]}"
    elif "Traceback" in done["said"] or "a fault of ours" in done["said"]:
        fault = f"no clear line: {done['said'].strip()[-300:]}"
    elif len(errors) != 1 and "failed" not in done["said"]:  # a grid names each cell that failed
        fault = f"{len(errors)} lines of an error: {done['said'].strip()[-300:]}"
    else:
        row.ended += 1
    if fault := fault or (command.broken(out, done["said"]) if command.broken else ""):
        row.faults.append(fault)
    if fault := call_again(run, command, out, expected):
        row.faults.append(f"after {done['said'].strip()[-200:]}: {fault}")
    else:
        row.restored += 1


def refuse_changes(run: Mortal, command: Command, folder: Path, *, places: int | None, start: int = 0) -> Row:
    """Refuse changes to the disk, one a call, each with another error in turn.

    Args:
        run: Runs the command.
        command: What to refuse it to.
        folder: For its files.
        places: How many of the changes, evenly spread; None for all.
        start: Which of ``ERRORS`` comes first.
    """
    row, out = Row(command.name), folder / "out"
    whole(run, command, folder)
    expected, events, _ = whole(run, command, folder)
    chosen = list(range(1, events + 1))
    if places is not None:
        chosen = sorted({1 + (events - 1) * (2 * k + 1) // (2 * places) for k in range(places)})
    for number, at in enumerate(chosen):
        shutil.rmtree(out, ignore_errors=True)
        error = ERRORS[(start + number) % len(ERRORS)]
        before = len(row.faults)
        judge(run, command, out, expected, run(*command.first(out), at=at, refuse=error), row)
        row.faults[before:] = [f"{command.name}, {error} at change {at}: {text}" for text in row.faults[before:]]
    return row


def refuse_size(run: Mortal, command: Command, folder: Path, sizes: dict[str, list[int]]) -> Row:
    """Call a command under limits of the system: each name of a limit with each of its sizes."""
    row, out = Row(command.name), folder / "out"
    expected, _, _ = whole(run, command, folder)
    for name, values in sizes.items():
        for value in values:
            shutil.rmtree(out, ignore_errors=True)
            before = len(row.faults)
            judge(run, command, out, expected, run(*command.first(out), limits={name: value}), row)
            row.faults[before:] = [f"{command.name}, {name} {value}: {text}" for text in row.faults[before:]]
    return row


@contextmanager
def small_disk(folder: Path, size: int, *, read_only: bool = False) -> Iterator[bool]:
    """Mount a disk of ``size`` bytes at a folder; tells whether that can be done here."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=0777" + (",ro" if read_only else "")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)
